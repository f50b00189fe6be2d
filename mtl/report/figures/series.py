"""The logged metrics of a row's runs as curves: means over the seeds, thinned to what a screen can show."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from mtl.report.compare import Comparison, Row
from mtl.report.runs import Run
from mtl.report.sharing import is_of_one_run

NUMBERS = 600_000  # most numbers in all curves of a comparison: about 3 MB of a page
POINTS = (20, 200)  # fewest and most points of a curve: two pixels each in the page


@dataclass(frozen=True, eq=False)
class Curve:
    """A metric over training steps: mean, lowest and highest of the seeds; arrays of one length."""

    label: str
    index: int  # decides its colour
    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    shown: bool = True


def drawn(row: Row) -> list[Run]:
    """The runs whose curves are drawn: the finished ones, or all if none is finished."""
    return list((row.finished or row.runs).values())


def names_of(row: Row) -> list[str]:
    """The metrics that a row has logged in training and validation: a value of the test split is no curve."""
    names = dict.fromkeys(name for run in drawn(row) for name in run.series)
    return [name for name in names if not name.startswith("test/")]


def row_of(runs: Comparison, label: str | None, has: Callable[[Row], bool]) -> Row | None:
    """The row with this label; without one equal weighting, or else the first row for which ``has`` holds."""
    if label is None:
        found = sorted(filter(has, runs.rows), key=lambda row: not row.is_equal_weighting)
        return found[0] if found else None
    for row in runs.rows:
        if row.label == label:
            return row
    raise ValueError(f"row={label!r} is not a row of these runs; they have {', '.join(r.label for r in runs.rows)}.")


def of_row(title: str, row: Row | None) -> str:
    """The title of a figure of one row, with its name."""
    return f"{title}: {row.label}" if row else title


def series_of(runs: Comparison, row: Row | None, pattern: str) -> Iterator[Curve]:
    """The curves of a row whose names match ``pattern`` from their beginning to their end; its group is their label."""
    if row is None:
        return
    points = points_of(runs)
    matches = [match for name in names_of(row) if (match := re.fullmatch(pattern, name))]
    for index, match in enumerate(matches):
        found = curve(row, match[0], points, match[1] or "", index)
        if found is not None:
            yield found


def points_of(runs: Comparison) -> int:
    """Most points of a curve, so that all curves of all rows have at most NUMBERS numbers."""
    curves = sum(len(names_of(row)) for row in runs.rows)
    return max(POINTS[0], min(POINTS[1], NUMBERS // max(1, 6 * curves)))


def curve(row: Row, name: str, points: int, label: str, index: int, shown: bool = True) -> Curve | None:
    """A metric's mean, minimum and maximum over the seeds at their common steps; None without a common step.

    Neighbouring steps are averaged until at most ``points`` are left; a point stands at the last of its steps.
    """
    found = [run.series[name] for run in drawn(row) if name in run.series]
    found = found[:1] if is_of_one_run(name) else found
    common = found[0][0] if found else np.array([])
    for steps, _ in found[1:]:
        common = np.intersect1d(common, steps)
    if not len(common):
        return None
    values = np.stack([values[np.searchsorted(steps, common)] for steps, values in found])
    starts = np.unique(np.linspace(0, len(common), min(points, len(common)), endpoint=False).astype(int))
    ends = np.append(starts[1:], len(common))

    def thinned(line: np.ndarray) -> np.ndarray:
        return (np.add.reduceat(line, starts) / (ends - starts)).astype("f4")

    mean = thinned(values.mean(0))
    low, high = (thinned(values.min(0)), thinned(values.max(0))) if len(values) > 1 else (mean, mean)
    return Curve(label, index, common[ends - 1].astype("i4"), mean, low, high, shown)
