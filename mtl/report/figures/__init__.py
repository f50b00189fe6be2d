"""Figures of a comparison, in Plotly: the same one stands in the page, in a notebook and in W&B.

    runs = figures.read("outputs/digits_strategies", tune=["optimizer.lr"])
    figures.tradeoffs(runs).show()

Each function takes the runs and, where there is a choice, what to draw; it returns a ``plotly.graph_objects.Figure``,
without traces where nothing of its kind was logged. ValueError for a metric or a row that there is not.
"""

from mtl.report.figures.conflict import conflict, norms
from mtl.report.figures.cosines import cosines
from mtl.report.figures.cost import cost
from mtl.report.figures.curves import curves
from mtl.report.figures.fronts import fronts
from mtl.report.figures.reading import of_one_run, read
from mtl.report.figures.sharing import alphas, entropies, gates, penalties, selected
from mtl.report.figures.tradeoffs import tradeoffs
from mtl.report.figures.weights import weights

__all__ = [
    "alphas",
    "conflict",
    "cosines",
    "cost",
    "curves",
    "entropies",
    "fronts",
    "gates",
    "norms",
    "of_one_run",
    "penalties",
    "read",
    "selected",
    "tradeoffs",
    "weights",
]
