"""Runs for the figures, from their folders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import plotly.graph_objects as go

from mtl.report.compare import Comparison, compare
from mtl.report.figures.conflict import conflict, norms
from mtl.report.figures.cosines import cosines
from mtl.report.figures.sharing import alphas, entropies, gates, penalties, selected
from mtl.report.figures.weights import weights
from mtl.report.runs import ReportError, find_runs

# What one run has to show; its curves W&B draws itself.
OF_ONE_RUN: tuple[Callable[[Comparison], go.Figure], ...] = (
    cosines, conflict, norms, weights, gates, entropies, selected, alphas, penalties,
)  # fmt: skip


def read(*paths: str | Path, tune: Sequence[str] = ()) -> Comparison:
    """All runs below ``paths``, which are of one data set, as ``mtl-report PATHS --tune TUNE`` compares them.

    ReportError (a ValueError) for a path without a run, and for runs of several data sets.
    """
    found = compare(find_runs([Path(path) for path in paths]), tune)
    if len(found) > 1:
        data = " and ".join(comparison.data for comparison in found)
        raise ReportError(f"The runs are of {data}: a figure is of one data set, so give the runs of one.")
    return found[0]


def of_one_run(folder: Path) -> dict[str, go.Figure]:
    """The figures of one run, by name; those alone that have something to show."""
    runs = read(folder)
    return {draw.__name__: figure for draw in OF_ONE_RUN if (figure := draw(runs)).data}
