"""What a training step costs, against the quality that it brings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from mtl.report.compare import Comparison, Row
from mtl.report.figures.drawing import figure, text
from mtl.report.figures.points import Point, ranges, scatter
from mtl.report.statistics import Interval
from mtl.report.tables import arrow
from mtl.report.timing import SHARED

TITLE = "Training cost against quality"
DELTA = "Δm by metric, %"


def qualities(runs: Comparison) -> list[str]:
    """The measures of quality to choose from: Δm where there is one, and the test metrics of known direction."""
    return [*[DELTA] * any(row.delta_metric for row in runs.methods), *runs.directed]


def cost(runs: Comparison, quality: str | None = None) -> go.Figure:
    """Median time of a training step against ``quality``, by default the first of ``qualities``, with their spreads.

    A row is left out, and named, whose runs shared the machine with another run of these.
    """
    known = qualities(runs)
    quality = quality or (known[0] if known else None)
    if quality is None:
        return figure([], TITLE)
    if quality not in known:
        raise ValueError(f"quality={quality} is no measure of these runs; there are {', '.join(known)}.")
    points = [point for row in runs.methods if (point := _point(runs, row, quality)) is not None]
    span = ranges([(p.left, p.right, p.bottom, p.top) for p in points])
    axes = {
        "xaxis": {"title": {"text": "milliseconds a step ↓"}, "range": list(span[0])},
        "yaxis": {"title": {"text": text(quality) + arrow(runs.directed.get(quality, False))}, "range": list(span[1])},
    }
    return figure(scatter(points, span, " ms"), TITLE, _caption(runs, points), hovermode="closest", **axes)


def _point(runs: Comparison, row: Row, quality: str) -> Point | None:
    found: Interval | None = row.delta_metric if quality == DELTA else row.metrics.get(quality)
    if found is None or not len(row.step_times) or _shared(row):
        return None
    low, middle, high = (1000 * float(value) for value in np.quantile(row.step_times, (0.25, 0.5, 0.75)))
    return Point(row.label, runs.rows.index(row), middle, found.mean, (low, high), found.half or 0.0, row.is_static)


def _shared(row: Row) -> bool:
    return bool(row.time and SHARED in row.time.doubts)


def _caption(runs: Comparison, points: Sequence[Point]) -> str:
    if not points:
        said = "There are no step times that could be compared."
    else:
        bars = "; vertical bars: 95 % intervals" if any(point.half for point in points) else ""
        said = (
            f"Median time of a training step, with the quartiles of the readings, against the test metrics{bars}. "
            "The axes do not start at zero; a label without room is left out."
        )
    methods = [row for row in runs.methods if row.time and row is not row.reference]
    if any(row.time and row.time.doubts and not _shared(row) for row in methods):
        said += " Of a row marked † in the table, the time may be the machine's."
    shared = [row.label for row in runs.methods if _shared(row)]
    if shared:
        said += (
            " Not drawn, because they shared the machine with another run of this report, or are compared with one "
            f"that did: {', '.join(shared)}."
        )
    return said
