"""The front of trade-offs that each method reaches over its preferences, and the hypervolume below it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from statistics import fmean
from typing import Any

import numpy as np
import plotly.graph_objects as go

from mtl.report.compare import Comparison, Row
from mtl.report.figures.drawing import colour, figure, text
from mtl.report.figures.tradeoffs import chosen_pair, pareto_front
from mtl.report.names import row_labels
from mtl.report.tables import arrow

TITLE = "Fronts over preferences"
# Where a preference stands: of rules, of scalarizations, and static weights.
KEYS = ("strategy.rule.preference", "weighting.preference", "weighting.weights")
FOLLOWING = ("trainer.monitor", "trainer.mode")  # what may follow the preference: the formula that chooses the model
FEWEST = 3  # preferences that make a front


@dataclass(frozen=True)
class Front:
    """A method's settings: the mean test metrics of each preference, and each seed's hypervolume."""

    method: str
    points: list[tuple[float, float]]
    labels: list[str]
    volumes: list[float]  # by seed; empty without moocore


def fronts(runs: Comparison, x: str | None = None, y: str | None = None) -> go.Figure:
    """The test metrics ``x`` and ``y`` of every method with three preferences or more, and its front as a line.

    Without traces where there is none. ValueError for a metric without a known direction.
    """
    pair = chosen_pair(runs, x, y)
    if pair is None:
        return figure([], TITLE)
    x, y = pair
    up = runs.directed[x], runs.directed[y]
    reference = reference_point(runs, x, y)
    found = front_of_each(runs, x, y, reference)
    traces = [trace for index, front in enumerate(found) for trace in _traces(front, index, up)]
    axes = {
        key: {"title": {"text": f"{name}{arrow(runs.directed[name])}"}} for key, name in (("xaxis", x), ("yaxis", y))
    }
    return figure(traces, TITLE, _caption(found, reference) if found else "", hovermode="closest", **axes)


def reference_point(runs: Comparison, x: str, y: str) -> tuple[float, float]:
    """The worst value of each metric in any run of a front: all hypervolumes of a figure are measured from it."""
    rows = [row for own in _methods(runs, x, y).values() for row in own]
    values = [[value for row in rows for value in row.test(name).values()] for name in (x, y)]
    worst = [(min if runs.directed[name] else max)(own, default=0.0) for name, own in zip((x, y), values, strict=True)]
    return worst[0], worst[1]


def front_of_each(runs: Comparison, x: str, y: str, reference: tuple[float, float]) -> list[Front]:
    """A front for each method with enough preferences."""
    up = runs.directed[x], runs.directed[y]
    found = []
    for method, rows in _methods(runs, x, y).items():
        points = [(fmean(row.test(x).values()), fmean(row.test(y).values())) for row in rows]
        seeds = sorted(set.intersection(*(set(row.test(x)) & set(row.test(y)) for row in rows)))
        by_seed = [[(row.test(x)[seed], row.test(y)[seed]) for row in rows] for seed in seeds]
        volumes = [hypervolume(own, reference, up) for own in by_seed] if _has_moocore() else []
        found.append(Front(method, points, [row.label for row in rows], volumes))
    return found


def hypervolume(points: Sequence[tuple[float, float]], reference: tuple[float, float], up: tuple[bool, bool]) -> float:
    """The area between the points' front and the reference point, by moocore."""
    import moocore

    return float(moocore.hypervolume(np.array(points), ref=np.array(reference), maximise=list(up)))


def _methods(runs: Comparison, x: str, y: str) -> dict[str, list[Row]]:
    """The rows of each method that differ in its preference alone and have both metrics, where there are enough."""
    free = {key for row in runs.methods for key in row.settings if key.startswith((*KEYS, *FOLLOWING))}
    free |= {key for row in runs.methods for other in row.others for key in _differing(row, other)}  # selected for each
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in runs.methods:
        if row.test(x) and row.test(y) and any(key.startswith(KEYS) for key in row.settings):
            alike = sorted((key, str(value)) for key, value in row.settings.items() if key not in free)
            found.setdefault(tuple(alike), []).append(row)
    fronts = [rows for rows in found.values() if len(rows) >= FEWEST]
    labels = row_labels([rows[0].settings for rows in fronts], free)
    return dict(zip(labels, fronts, strict=True))


def _differing(row: Row, other: Row) -> set[str]:
    own, others = row.settings, other.settings
    return {key for key in own.keys() | others.keys() if own.get(key) != others.get(key)}


def _has_moocore() -> bool:
    return find_spec("moocore") is not None


def _traces(front: Front, index: int, up: tuple[bool, bool]) -> list[dict[str, Any]]:
    name, line = text(front.method), pareto_front(front.points, *up)
    group = f"front of {front.method}"  # a row may have the method's name
    return [
        {
            "type": "scatter", "mode": "lines", "x": [a for a, _ in line], "y": [b for _, b in line],
            "line": {"color": colour(index), "width": 2}, "hoverinfo": "skip", "showlegend": False,
            "name": name, "legendgroup": group,
        },
        {
            "type": "scatter", "mode": "markers", "x": [a for a, _ in front.points], "y": [b for _, b in front.points],
            "marker": {"color": colour(index), "size": 8}, "text": [text(label) for label in front.labels],
            "hovertemplate": "%{text}: %{x:.4~g}, %{y:.4~g}<extra></extra>", "name": name, "legendgroup": group,
        },
    ]  # fmt: skip


def _caption(found: Sequence[Front], reference: tuple[float, float]) -> str:
    said = (
        "Each point is a preference, the mean test metrics of its seeds; a line joins those that no other preference "
        "of the method beats."
    )
    if not _has_moocore():
        return f"{said} Hypervolumes need moocore: pip install 'mtl-torch[pareto]'."
    volumes = "; ".join(f"{front.method} {_spread(front.volumes)}" for front in found)
    return (
        f"{said} Hypervolume from the reference point ({reference[0]:.4g}, {reference[1]:.4g}), the worst of each "
        f"metric in any of these runs, as the mean and range over the seeds: {volumes}. More is better, and how much "
        "more depends on the reference point."
    )


def _spread(volumes: Sequence[float]) -> str:
    if not volumes:
        return "none (no seed has trained all its preferences)"
    return f"{np.mean(volumes):.3g} ({min(volumes):.3g}–{max(volumes):.3g})"
