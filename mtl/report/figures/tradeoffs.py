"""Two metrics against each other, with the Pareto front of static weights."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import plotly.graph_objects as go

from mtl.delta_m import task_of
from mtl.report.compare import Comparison, Row
from mtl.report.figures.drawing import GREY, figure, text
from mtl.report.figures.points import Point, ranges, scatter
from mtl.report.tables import arrow

TITLE = "Two tasks against each other"
PAIRS = 45  # most pairs of metrics in a page


def metric_pairs(runs: Comparison) -> list[tuple[str, str]]:
    """The pairs of metrics to choose from: those of different tasks first, and at most PAIRS."""
    found = list(combinations(runs.directed, 2))
    return sorted(found, key=lambda pair: task_of(pair[0]) == task_of(pair[1]))[:PAIRS]


def chosen_pair(runs: Comparison, x: str | None, y: str | None) -> tuple[str, str] | None:
    """The metrics ``x`` and ``y``, by default the first ones of two tasks; None where there are no two.

    ValueError for one that is no test metric of known direction.
    """
    pairs = metric_pairs(runs)
    x, y = x or (pairs[0][0] if pairs else None), y or (pairs[0][1] if pairs else None)
    if x is None or y is None:
        return None
    for key, name in (("x", x), ("y", y)):
        if name not in runs.directed:
            raise ValueError(
                f"{key}={name} is no test metric of known direction; there are {', '.join(runs.directed)}."
            )
    return x, y


def tradeoffs(runs: Comparison, x: str | None = None, y: str | None = None) -> go.Figure:
    """The test metrics ``x`` and ``y`` of every row, by default the first ones of two tasks, with their intervals.

    Settings with static weights are grey, and the band is their Pareto front.
    """
    pair = chosen_pair(runs, x, y)
    if pair is None:
        return figure([], TITLE)
    x, y = pair
    points = [point for row in runs.methods if (point := _point(runs, row, x, y)) is not None]
    weighted = _static(runs, x, y)
    span = ranges([(p.left, p.right, p.bottom, p.top) for p in points] + [(a, a, b, b) for _, a, b in weighted])
    traces = [*_front(weighted, runs.directed[x], runs.directed[y]), *scatter(points, span)] if points else []
    axes = {"xaxis": _axis(x, runs.directed[x], span[0]), "yaxis": _axis(y, runs.directed[y], span[1])}
    return figure(traces, TITLE, _caption(points, len(weighted)), hovermode="closest", **axes)


def _axis(name: str, higher: bool, span: tuple[float, float]) -> dict[str, Any]:
    return {"title": {"text": text(name) + arrow(higher)}, "range": list(span)}


def _point(runs: Comparison, row: Row, x: str, y: str) -> Point | None:
    if x not in row.metrics or y not in row.metrics:
        return None
    a, b = row.metrics[x], row.metrics[y]
    half = a.half or 0.0
    spread = (a.mean - half, a.mean + half)
    return Point(row.label, runs.rows.index(row), a.mean, b.mean, spread, b.half or 0.0, row.is_static)


def _static(runs: Comparison, x: str, y: str) -> list[tuple[str, float, float]]:
    """The settings with static weights, selected or not; none where all are equal weighting, which makes no front.

    Those with fewer seeds than others are left out, as they are of a selection: a lucky seed would be the front.
    """
    rows = [row for row in runs.candidates if row.is_static and row.finished]
    rows = [row for row in rows if len(row.finished) == max(len(other.finished) for other in rows)]
    if all(row.is_equal_weighting for row in rows):
        return []
    found = []
    for row in rows:
        a, b = row.test(x).values(), row.test(y).values()
        if a and b:
            found.append((row.label, sum(a) / len(a), sum(b) / len(b)))
    return found


def _front(weighted: Sequence[tuple[str, float, float]], x_up: bool, y_up: bool) -> list[dict[str, Any]]:
    if not weighted:
        return []
    front = pareto_front([(a, b) for _, a, b in weighted], x_up, y_up)
    band = {
        "type": "scatter", "mode": "lines", "x": [a for a, _ in front], "y": [b for _, b in front],
        "line": {"color": GREY, "width": 7}, "opacity": 0.3, "hoverinfo": "skip", "name": "front of static weights",
    }  # fmt: skip
    dots = {
        "type": "scatter", "mode": "markers", "x": [a for _, a, _ in weighted], "y": [b for *_, b in weighted],
        "marker": {"color": GREY, "size": 5, "symbol": "square"}, "opacity": 0.7, "name": "static weights",
        "text": [text(label) for label, *_ in weighted],
        "hovertemplate": "%{text}: %{x:.4~g}, %{y:.4~g}<extra></extra>",
    }  # fmt: skip
    return [*[band] * (len(front) > 1), dots]


def pareto_front(points: Sequence[tuple[float, float]], x_up: bool, y_up: bool) -> list[tuple[float, float]]:
    """The points that no other one is as good as in both metrics and better in one; from left to right."""

    def dominates(p: tuple[float, float], q: tuple[float, float]) -> bool:
        good = [a >= b if up else a <= b for a, b, up in zip(p, q, (x_up, y_up), strict=True)]
        return all(good) and p != q

    return sorted({q for q in points if not any(dominates(p, q) for p in points)})


def _caption(points: Sequence[Point], weighted: int) -> str:
    bars = "; bars: 95 % intervals" if any(point.half or point.right > point.left for point in points) else ""
    said = f"Test metrics{bars}. The axes do not start at zero; a label without room is left out."
    if weighted:
        said += (
            f" Grey: the {weighted} settings with static weights; the band is their Pareto front on the test split. A "
            "strategy is better than static weights only beyond the band, by more than its interval."
        )
    return said
