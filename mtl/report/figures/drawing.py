"""What all figures have in common: colours, text, axes, and lines with bands."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from mtl.report.figures.series import Curve

# Each has a contrast of 3 or more against white and against the page's dark surface, so that one set serves both.
COLOURS = (
    "#3b82c4", "#d0621e", "#2f9e6e", "#d1477a", "#8467d7", "#a67c1a", "#1f9aa3", "#c058b0", "#7a8594", "#8a951f",
)  # fmt: skip
GREY = "#7a8594"
GRID = "rgba(128, 128, 128, 0.2)"
DASHES = ("solid", "dash", "dot", "dashdot")
CLEAR = "rgba(0, 0, 0, 0)"
MARKED = 12  # a line of at most this many points has markers
WRAP = 100  # characters in a line of a caption below a figure
ALL_AT_ONCE = 14  # most lines whose values one tooltip shows


def colour(index: int) -> str:
    """The colour of a row or a series, by its place."""
    return COLOURS[index % len(COLOURS)]


def dash(index: int) -> str:
    """The dashes of a line: with the colours they tell forty apart."""
    return DASHES[index // len(COLOURS) % len(DASHES)]


def text(label: str) -> str:
    """``label`` for a place where Plotly reads tags: what comes from a run is shown as it is."""
    return html.escape(label, quote=False)


def figure(traces: Sequence[dict[str, Any]], title: str, caption: str = "", **layout: Any) -> go.Figure:
    """A figure with its caption below it. The page shows both as its own text, from ``layout.meta``."""
    lines = textwrap.wrap(caption, WRAP)
    below = {
        "name": "caption", "text": "<br>".join(map(text, lines)), "showarrow": False, "align": "left",
        "xref": "paper", "yref": "paper", "x": 0, "y": 0, "xanchor": "left", "yanchor": "top", "yshift": -52,
        "font": {"size": 11},
    }  # fmt: skip
    axis = {"gridcolor": GRID, "zerolinecolor": GRID, "automargin": True}
    common = {
        "template": "none",
        "meta": {"caption": caption, "title": title},
        "title": {"text": text(title), "x": 0, "xref": "paper", "font": {"size": 15}},
        "annotations": [below] * bool(lines),
        "margin": {"l": 60, "r": 16, "t": 48, "b": 56 + 15 * len(lines)},
        "font": {"size": 12},
        "paper_bgcolor": CLEAR,
        "plot_bgcolor": CLEAR,
        "hoverlabel": {"namelength": -1},
        "legend": {"itemsizing": "constant"},
    }
    axes = {name: axis | layout.get(name, {}) for name in ("xaxis", "yaxis")}
    return go.Figure({"data": list(traces), "layout": common | layout | axes})


def lines(curves: Sequence[Curve], title: str, caption: str = "", log: bool = False, **layout: Any) -> go.Figure:
    """Curves over training steps, each with the band from its lowest to its highest seed.

    ``log``: a logarithmic axis where all values are positive and span more than a factor of ten.
    """
    traces = [trace for curve in curves for trace in _line(curve)]
    values = np.concatenate([part for c in curves for part in (c.low, c.high)]) if curves else np.ones(1)
    wide = bool(log and values.min() > 0 and values.max() > 10 * values.min())
    hover = "x unified" if len(curves) <= ALL_AT_ONCE else "closest"
    layout = {"xaxis": {"title": {"text": "step"}}, "yaxis": {"type": "log", "dtick": 1} if wide else {}} | layout
    return figure(traces, title, caption, hovermode=hover, showlegend=True, **layout)


def _line(curve: Curve) -> list[dict[str, Any]]:
    name, shade = text(curve.label), colour(curve.index)
    shown: Any = True if curve.shown else "legendonly"
    traces = []
    if curve.low is not curve.high and len(curve.steps) > 1:
        traces.append(
            {
                "type": "scatter", "mode": "lines", "fill": "toself", "fillcolor": shade, "opacity": 0.15,
                "x": np.concatenate([curve.steps, curve.steps[::-1]]),
                "y": np.concatenate([curve.high, curve.low[::-1]]),
                "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False,
                "name": name, "legendgroup": curve.label, "visible": shown,
            }
        )  # fmt: skip
    traces.append(
        {
            "type": "scatter", "mode": "lines+markers" if len(curve.steps) <= MARKED else "lines",
            "x": curve.steps, "y": curve.mean, "line": {"color": shade, "width": 2, "dash": dash(curve.index)},
            "marker": {"size": 5}, "name": name, "legendgroup": curve.label, "visible": shown,
            "hovertemplate": "%{y:.4~g}",
        }
    )  # fmt: skip
    return traces
