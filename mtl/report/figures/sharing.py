"""What an architecture decides, over training: gates, their entropy, selected experts, α, and penalties."""

from __future__ import annotations

from dataclasses import replace

import plotly.graph_objects as go

from mtl.report.compare import Comparison, Row
from mtl.report.figures.drawing import lines
from mtl.report.figures.series import names_of, of_row, row_of, series_of
from mtl.report.sharing import PREFIX


def has_sharing(row: Row) -> bool:
    """Whether an architecture of a row has logged a decision."""
    return any(name.startswith(PREFIX) for name in names_of(row))


def gates(runs: Comparison, row: str | None = None) -> go.Figure:
    """The weights that gates give to experts, in the first seed: an expert's number means nothing in another one."""
    return _lines(runs, row, "gate", "Weights that gates give to experts: task / expert")


def entropies(runs: Comparison, row: str | None = None) -> go.Figure:
    """The entropy of the gates, in nats."""
    return _lines(runs, row, "gate_entropy", "Entropy of the gates, in nats")


def selected(runs: Comparison, row: str | None = None) -> go.Figure:
    """The number of experts that a sample has on average."""
    return _lines(runs, row, "selected", "Experts that a sample has on average")


def alphas(runs: Comparison, row: str | None = None) -> go.Figure:
    """α of cross-stitch and sluice units."""
    return _lines(runs, row, "alpha(?:_last)?", "α: task ~ column / unit")


def penalties(runs: Comparison, row: str | None = None) -> go.Figure:
    """The architecture's penalties."""
    return _lines(runs, row, "penalty", "Penalties")


def _lines(runs: Comparison, row: str | None, kind: str, title: str) -> go.Figure:
    found = row_of(runs, row, has_sharing)
    series = series_of(runs, found, f"{PREFIX}{kind}(?:/(.*))?")
    curves = [replace(curve, label=curve.label or "all tasks") for curve in series]
    return lines(curves, of_row(title, found), "The mean of a batch." if curves else "")
