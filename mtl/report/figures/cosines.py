"""The cosine matrix of the task gradients, over training."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go

from mtl.descriptions import SMALL_COSINES
from mtl.report.compare import Comparison, Row
from mtl.report.figures.drawing import figure, text, typed
from mtl.report.figures.series import drawn, names_of, of_row, row_of

PREFIX = "train/conflict/cos/"
FRAMES = (12, 48)  # fewest and most matrices over training
ALL_FRAMES = 600  # about as many in all rows of a page
NUMBERED = 8  # most tasks whose cells have their numbers
SCALE = [  # fixed from -1 to 1; clear in the middle, so that it suits a light and a dark surface
    [0.0, "rgba(214, 69, 69, 0.85)"],
    [0.5, "rgba(214, 69, 69, 0)"],
    [0.5, "rgba(59, 130, 196, 0)"],
    [1.0, "rgba(59, 130, 196, 0.85)"],
]
SPACES = {
    "features": "with respect to the shared features, sample by sample",
    "features_sum": "with respect to the shared features, summed over the batch",
    "parameters": "with respect to the shared parameters",
}


def has_cosines(row: Row) -> bool:
    """Whether a row has logged the cosine of a pair of tasks."""
    return any(name.startswith(PREFIX) for name in names_of(row))


def cosines(runs: Comparison, row: str | None = None) -> go.Figure:
    """The cosines of every pair of tasks of a row, by default equal weighting, with a slider over the steps."""
    found = row_of(runs, row, has_cosines)
    if found is None or not has_cosines(found):
        return figure([], "Cosines of the task gradients")
    steps, matrices = matrices_of(found, min(FRAMES[1], max(FRAMES[0], ALL_FRAMES // len(runs.rows))))
    names = [text(task) for task in found.first.tasks]
    heat: dict[str, Any] = {
        "type": "heatmap", "x": names, "y": names, "z": typed(matrices[-1]), "zmin": -1, "zmax": 1, "colorscale": SCALE,
        "xgap": 1, "ygap": 1, "colorbar": {"title": {"text": "cosine"}, "thickness": 12, "tickvals": [-1, 0, 1]},
        "hovertemplate": "%{y} and %{x}: %{z:+.3f}<extra></extra>",
    }  # fmt: skip
    if len(names) <= NUMBERED:
        heat |= {"texttemplate": "%{z:+.3f}"}
    shown = figure(
        [heat], of_row("Cosines of the task gradients", found),
        f"{space_of(found)} Blue: agreement, red: opposition; an empty cell: not measured. {SMALL_COSINES}",
        xaxis={"constrain": "domain", "showgrid": False, "tickangle": -40 if len(names) > 4 else 0},
        yaxis={"autorange": "reversed", "scaleanchor": "x", "constrain": "domain", "showgrid": False},
        sliders=[_slider(steps)],
    )  # fmt: skip
    shown.frames = [
        {"name": str(step), "data": [{"type": "heatmap", "z": typed(matrix)}]}
        for step, matrix in zip(steps, matrices, strict=True)
    ]
    return shown


def space_of(row: Row) -> str:
    """A sentence that says which gradients were compared."""
    space = row.settings.get("strategy.space", "features")
    seeds = f", averaged over the {len(row.finished)} finished runs" if len(row.finished) > 1 else ""
    return f"Gradients {SPACES.get(space, f'in the space {space}')}, in training steps{seeds}."


def matrices_of(row: Row, frames: int) -> tuple[list[int], np.ndarray]:
    """At most ``frames`` steps, and of each the mean matrix [frames, tasks, tasks] of the steps since the last one.

    NaN for a pair that was not measured in between.
    """
    tasks = row.first.tasks
    logged = {
        name.removeprefix(PREFIX): [run.series[name] for run in drawn(row) if name in run.series]
        for name in names_of(row)
        if name.startswith(PREFIX)
    }
    every = np.unique(np.concatenate([steps for found in logged.values() for steps, _ in found]))
    ends = np.unique(np.linspace(0, len(every), min(frames, len(every)) + 1).astype(int)[1:]) - 1
    matrices = np.full((len(ends), len(tasks), len(tasks)), np.nan, dtype="f4")
    matrices[:, range(len(tasks)), range(len(tasks))] = 1
    for pair, found in logged.items():
        i, j = (tasks.index(task) for task in pair.split("~"))
        steps, values = (np.concatenate(part) for part in zip(*found, strict=True))
        places = np.searchsorted(every[ends], steps)
        counts = np.bincount(places, minlength=len(ends))
        sums = np.bincount(places, values, minlength=len(ends))
        means = np.divide(sums, counts, out=np.full(len(ends), np.nan), where=counts > 0)
        matrices[:, i, j] = matrices[:, j, i] = means
    return [int(step) for step in every[ends]], matrices


def _slider(steps: list[int]) -> dict[str, Any]:
    now = {"mode": "immediate", "frame": {"duration": 0, "redraw": True}, "transition": {"duration": 0}}
    return {
        "active": len(steps) - 1,
        "currentvalue": {"prefix": "step "},
        "pad": {"t": 30},
        "steps": [{"label": str(step), "method": "animate", "args": [[str(step)], now]} for step in steps],
    }
