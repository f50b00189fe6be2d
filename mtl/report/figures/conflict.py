"""How much the task gradients of a row conflict, over training."""

from __future__ import annotations

import re

import plotly.graph_objects as go

from mtl.report.compare import Comparison, Row
from mtl.report.figures.cosines import space_of
from mtl.report.figures.drawing import lines
from mtl.report.figures.series import names_of, of_row, row_of, series_of


def has_conflict(row: Row) -> bool:
    """Whether a row of several tasks has logged conflict metrics or weights."""
    return len(row.first.tasks) > 1 and any(re.search("train/(conflict/cos|weight/)", name) for name in names_of(row))


def conflict(runs: Comparison, row: str | None = None) -> go.Figure:
    """The share of pairs of tasks in conflict, their mean and their lowest cosine, by default of equal weighting."""
    found = row_of(runs, row, has_conflict)
    tolerance = (found.first.config.get("conflict") or {}).get("tolerance", 0) if found else 0
    curves = list(series_of(runs, found, "train/conflict/(fraction|cos_mean|cos_min)"))
    below = f"−{tolerance}" if tolerance else "0"
    title = f"Share of pairs with a cosine below {below}; mean and lowest cosine"
    caption = space_of(found) if found and curves else ""
    return lines(curves, of_row(title, found), caption, yaxis={"range": [-1.02, 1.02]})


def norms(runs: Comparison, row: str | None = None) -> go.Figure:
    """The norms of the weighted losses' gradients, by default of equal weighting."""
    found = row_of(runs, row, has_conflict)
    curves = list(series_of(runs, found, "train/conflict/norm/(.*)"))
    title = of_row("Norms of the weighted losses' gradients", found)
    return lines(curves, title, space_of(found) if found and curves else "", True)
