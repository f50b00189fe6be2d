"""A metric over training, one line a row."""

from __future__ import annotations

import math
import re

import plotly.graph_objects as go

from mtl.report.compare import Comparison
from mtl.report.figures.drawing import lines
from mtl.report.figures.series import curve, names_of, points_of

ALL_SHOWN = 8  # rows that are all shown at first; of more, equal weighting and the best SOME
SOME = 5
OWN_FIGURE = re.compile(r"conflict/cos/|affinity/|architecture/gate/")  # one pair, one expert: drawn row by row


def curve_names(runs: Comparison) -> list[str]:
    """The metrics to choose from: val/loss/total, the rest of validation, the training losses, then all others."""
    starts = ("val/loss/total", "val/", "train/loss", "")
    names = dict.fromkeys(name for row in runs.rows for name in names_of(row) if not OWN_FIGURE.search(name))
    return sorted(names, key=lambda name: next(i for i, start in enumerate(starts) if name.startswith(start)))


def curves(runs: Comparison, metric: str | None = None) -> go.Figure:
    """One metric over training for every row, by default the first of ``curve_names``; other rows start hidden.

    The mean of the finished runs of a row, with a band from the lowest to the highest seed.
    """
    names = curve_names(runs)
    if metric is not None and metric not in names:
        raise ValueError(f"metric={metric} was logged by none of these runs; they have {', '.join(names)}.")
    metric = metric or (names[0] if names else "")
    shown, points = shown_at_first(runs), points_of(runs)
    found = [
        c
        for index, row in enumerate(runs.rows)
        if (c := curve(row, metric, points, row.label, index, index in shown)) is not None
    ]
    return lines(found, f"Over training: {metric}" if metric else "Over training", _caption(runs), "loss" in metric)


def shown_at_first(runs: Comparison) -> set[int]:
    """The places of the rows that are shown at first."""
    if len(runs.rows) <= ALL_SHOWN:
        return set(range(len(runs.rows)))
    ranks = [
        (-1.0 if row.is_equal_weighting else row.rank if math.isfinite(row.rank) else math.inf) for row in runs.rows
    ]
    return set(sorted(range(len(ranks)), key=lambda index: ranks[index])[: SOME + 1])


def _caption(runs: Comparison) -> str:
    seeds = max((len(row.finished) for row in runs.rows), default=0)
    said = (
        "Mean over the finished runs of a row, at the steps that all of them logged; the band spans the lowest and the "
        "highest seed."
        if seeds > 1
        else "One run a row."
    )
    said += f" Curves of more than {points_of(runs)} points are averaged over neighbouring steps."
    if len(runs.rows) > ALL_SHOWN:
        said += f" At first equal weighting and {SOME} rows are shown: the legend shows the others."
    unfinished = [row.label for row in runs.rows if not row.finished]
    return said + (f" Of runs that have not finished: {', '.join(unfinished)}." if unfinished else "")
