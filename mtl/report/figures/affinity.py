"""What a step on one task does to another's loss, as a matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go

from mtl.descriptions import AFFINITIES
from mtl.report.affinity import CAPTION, best_of, in_percent
from mtl.report.compare import Comparison, Row
from mtl.report.figures.cosines import NUMBERED, SCALE
from mtl.report.figures.drawing import figure, text
from mtl.report.figures.series import names_of, row_of
from mtl.report.tables import NOTHING, format_interval

TITLE = "Affinity of the tasks, in % of the loss"


def has_affinity(row: Row) -> bool:
    """Whether a row has logged the affinity of a pair of tasks."""
    return any(name.startswith(f"train/{AFFINITIES['estimate']}") for name in names_of(row))


def affinity(runs: Comparison, row: str | None = None) -> go.Figure:
    """The affinities of a row's tasks, by default of equal weighting: of the lookahead, or else of the estimate.

    The colours' range is that of the pairs of two tasks; a task's own step does more to its loss.
    """
    found = row_of(runs, row, has_affinity)
    if found is None or (shown := best_of(found)) is None:
        return figure([], TITLE)
    names = [text(task) for task in shown.tasks]
    numbers = [[NOTHING if z is None else format_interval(in_percent(z), "+") for z in line] for line in shown.cells]
    percent = 100 * shown.matrix
    off = np.abs(percent[~np.eye(len(names), dtype=bool)])
    most = float(np.nanmax(off)) if np.isfinite(off).any() else 1.0
    heat: dict[str, Any] = {
        "type": "heatmap", "x": names, "y": names, "z": percent, "zmin": -most, "zmax": most, "colorscale": SCALE,
        "xgap": 1, "ygap": 1, "colorbar": {"title": {"text": "%"}, "thickness": 12}, "text": numbers,
        "hovertemplate": "a step on %{y}, the loss of %{x}: %{text} %<extra></extra>",
    }  # fmt: skip
    if len(names) <= NUMBERED:
        heat |= {"texttemplate": "%{text}"}
    return figure(
        [heat], f"{TITLE}, by its {shown.kind}: {found.label}", CAPTION,
        xaxis={"title": {"text": "loss of"}, "showgrid": False, "tickangle": -40 if len(names) > 4 else 0},
        yaxis={"title": {"text": "step on"}, "autorange": "reversed", "showgrid": False},
    )  # fmt: skip
