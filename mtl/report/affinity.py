"""What a step on one task does to the others' losses, as runs have logged it, and how well the estimates rank that."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mtl.descriptions import AFFINITIES
from mtl.report.runs import Run
from mtl.report.statistics import CONFIDENCE, SEEDS, Interval, interval

if TYPE_CHECKING:
    from mtl.report.compare import Row

BLOCKS = 10  # of a run's steps; the means of consecutive steps are nearly independent, the steps themselves are not
TITLE = "affinity of the tasks, in % of the loss"
CAPTION = (
    "Line i, column j: the share of j's loss on a training batch that a step on i alone takes away, a step of plain "
    "gradient descent at the backbone's learning rate; negative where it adds to it (TAG, Fifty et al. 2021). The mean "
    f"over training with its {CONFIDENCE:.0%} interval, over the seeds, or with fewer than {SEEDS} seeds over {BLOCKS} "
    "parts of the runs. Lookahead: the step was taken. Estimate: to first order in the space of the strategy; at the "
    "features that is a step of the features themselves, whose size means nothing beside that of a step of the model."
)
AGREEMENT = (
    "Over the ordered pairs of two tasks, of the means: Spearman's rank correlation with the lookahead, the share of "
    "the same sign, and the ratio of the median sizes. Parameters: the first order of the steps of the lookahead."
)


@dataclass(frozen=True)
class Affinity:
    """The mean affinities of a row's tasks; ``cells[i][j]`` is what a step on i does to j, None if never measured."""

    kind: str  # one of AFFINITIES
    tasks: list[str]
    cells: list[list[Interval | None]]

    @property
    def matrix(self) -> np.ndarray:
        """The means ``[K, K]``; NaN where there is none."""
        return np.array([[np.nan if cell is None else cell.mean for cell in line] for line in self.cells])

    @property
    def is_complete(self) -> bool:
        """Whether every pair was measured."""
        return bool(np.isfinite(self.matrix).all())


def affinities(row: Row) -> dict[str, Affinity]:
    """What the runs of a row have measured, by kind, the lookahead first; empty where they were not asked to."""
    tasks, runs = row.first.tasks, list((row.finished or row.runs).values())
    found = {}
    for kind in AFFINITIES:
        cells = [[_cell(runs, f"train/{AFFINITIES[kind]}{a}→{b}") for b in tasks] for a in tasks]
        if any(cell is not None for line in cells for cell in line):
            found[kind] = Affinity(kind, tasks, cells)
    return found


def _cell(runs: list[Run], name: str) -> Interval | None:
    series = [run.series[name][1] for run in runs if name in run.series]
    if not series:
        return None
    if len(series) >= SEEDS:
        return interval([float(values.mean()) for values in series])
    parts = [float(part.mean()) for values in series for part in np.array_split(values, BLOCKS) if len(part)]
    mean = float(np.mean([values.mean() for values in series]))
    return Interval(mean, interval(parts).half, len(series))


def best_of(row: Row) -> Affinity | None:
    """The lookahead of a row where there is one, else the estimate; None where neither was measured."""
    return next(iter(affinities(row).values()), None)


def agreements(row: Row) -> Iterator[tuple[str, int, float, float, float]]:
    """Of each estimate: kind, pairs, its rank correlation with the lookahead, share of its sign, ratio of sizes."""
    found = affinities(row)
    if (ahead := found.pop("lookahead", None)) is None:
        return
    others = ~np.eye(len(ahead.tasks), dtype=bool)
    for kind, estimate in found.items():
        known = others & np.isfinite(estimate.matrix) & np.isfinite(ahead.matrix)
        a, b = estimate.matrix[known], ahead.matrix[known]
        if len(a) > 2 and np.ptp(a) > 0 and np.ptp(b) > 0:
            sizes = [float(np.median(np.abs(values))) for values in (a, b)]
            yield kind, len(a), rank_correlation(a, b), float(np.mean((a < 0) == (b < 0))), sizes[0] / sizes[1]


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's, of two sequences of numbers."""
    from scipy.stats import spearmanr

    return float(spearmanr(a, b).statistic)


def in_percent(found: Interval) -> Interval:
    """The same in percent."""
    return Interval(100 * found.mean, None if found.half is None else 100 * found.half, found.count)
