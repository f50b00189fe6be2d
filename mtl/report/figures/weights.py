"""The weights of the tasks, over training."""

from __future__ import annotations

import plotly.graph_objects as go

from mtl.report.compare import Comparison
from mtl.report.figures.conflict import has_conflict
from mtl.report.figures.drawing import lines
from mtl.report.figures.series import of_row, row_of, series_of


def weights(runs: Comparison, row: str | None = None) -> go.Figure:
    """The weight of each task's loss, by default of equal weighting."""
    found = row_of(runs, row, has_conflict)
    curves = list(series_of(runs, found, "train/weight/(.*)"))
    return lines(curves, of_row("Task weights", found), yaxis={"rangemode": "tozero"})
