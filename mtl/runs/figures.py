"""Figures of one run: run.png, and the heat map of a cosine matrix."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtl.runs.files import read_metrics
from mtl.runs.terminal import mean, task_names, tolerance

if TYPE_CHECKING:
    import numpy as np

LINES = 6  # most pairs whose cosines are drawn over time
CELL = 32  # side of a heat map's cell, in pixels


def heat_map(matrix: Any) -> np.ndarray:
    """A cosine matrix as pixels ``[H, W, 3]``: blue is 1, white is 0, red is -1, grey is unknown (NaN)."""
    import numpy as np
    from matplotlib import colormaps

    values = np.asarray(matrix, dtype=float)
    pixels = colormaps["RdBu"].with_extremes(bad="0.6")(np.ma.masked_invalid((values + 1) / 2))[..., :3]
    return np.kron((pixels * 255).astype(np.uint8), np.ones((CELL, CELL, 1), np.uint8))


def draw_run(folder: Path) -> Path:
    """Draw run.png: losses, val metrics, weights, cosines and learning rates over time, and the mean cosine matrix."""
    from matplotlib.figure import Figure

    train, val = read_metrics(folder, "train"), read_metrics(folder, "val")
    tasks = list(dict.fromkeys(task for row in train for task in task_names(row)))
    figure = Figure(figsize=(17, 7), layout="constrained")
    losses, metrics, weights, cosines, matrix, rates = figure.subplots(2, 3).flat
    for i, task in enumerate(tasks):
        _curve(losses, train, f"loss/{task}", None, color=f"C{i}", alpha=0.5, linewidth=1)
        _curve(losses, val, f"loss/{task}", task, color=f"C{i}", marker="o", markersize=3)
        _curve(weights, train, f"weight/{task}", task, color=f"C{i}", linewidth=1)
        for name in [n for n in (val[0] if val else {}) if n.startswith(f"{task}/")]:
            _curve(metrics, val, name, name, color=f"C{i}", marker="o", markersize=3)
    for name in dict.fromkeys(name for row in train for name in row if name.startswith("lr/")):
        _curve(rates, train, name, name.removeprefix("lr/"), linewidth=1)
    losses.set(title="loss: val, and train (faint)", xlabel="step", yscale="log")
    metrics.set(title="val metrics", xlabel="step")
    weights.set(title="weights of the tasks", xlabel="step")
    rates.set(title="learning rates", xlabel="step")
    _draw_cosines(cosines, train, tolerance(folder))
    for axes in (losses, metrics, weights, cosines, rates):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small", ncols=1 if len(tasks) <= 6 else 2)
    _draw_matrix(figure, matrix, tasks, train)
    figure.savefig(folder / "run.png", dpi=110)
    return folder / "run.png"


def _draw_cosines(axes: Any, train: list[dict[str, Any]], tolerance: float) -> None:
    """The cosines of the first pairs over time. Within the grey band, of ± ``tolerance``, there is no conflict."""
    names = _pair_names(train)
    for name in names[:LINES]:
        _curve(axes, train, name, name.removeprefix("conflict/cos/"), linewidth=1)
    axes.axhspan(-tolerance, tolerance, color="0.5", alpha=0.25, linewidth=0)
    axes.axhline(0, color="0.5", linewidth=0.8)
    largest = max((abs(v) for name in names[:LINES] for r in train if (v := r.get(name)) is not None), default=1.0)
    limit = min(1.05, max(4 * tolerance, 0.1, 1.1 * largest))  # noise must not fill the axes
    which = f"first {LINES} of {len(names)} pairs" if len(names) > LINES else "all pairs"
    axes.set(title=f"cosines of the task gradients, {which} (conflict: below the band of ±{tolerance:g})")
    axes.set(xlabel="step", ylim=(-limit, limit))
    axes.title.set_fontsize("medium")


def _draw_matrix(figure: Any, axes: Any, tasks: list[str], train: list[dict[str, Any]]) -> None:
    import numpy as np

    values = np.full((len(tasks), len(tasks)), np.nan)
    np.fill_diagonal(values, 1.0)
    for name in _pair_names(train):
        a, b = name.removeprefix("conflict/cos/").split("~")
        i, j = tasks.index(a), tasks.index(b)
        values[i, j] = values[j, i] = mean(train, name)
    image = axes.imshow(values, cmap="RdBu", vmin=-1, vmax=1)
    axes.set(title="mean cosine over the run", xticks=range(len(tasks)), yticks=range(len(tasks)))
    axes.set_xticklabels(tasks, rotation=45 if len(tasks) > 4 else 0)
    axes.set_yticklabels(tasks)
    if len(tasks) <= 12:
        for (i, j), value in np.ndenumerate(values):
            text = "" if np.isnan(value) else f"{value:+.3f}" if abs(value) < 0.1 else f"{value:+.2f}"
            colour = "white" if abs(value) > 0.6 else "black"
            axes.text(j, i, text, ha="center", va="center", color=colour, size=min(10, 48 / len(tasks)))
    figure.colorbar(image, ax=axes, label="cosine")


def _curve(axes: Any, rows: list[dict[str, Any]], name: str, label: str | None, **style: Any) -> None:
    points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    if points:
        axes.plot(*zip(*points, strict=True), label=label, **style)


def _pair_names(rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row if name.startswith("conflict/cos/")))
