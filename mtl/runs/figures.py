"""Figures of one run: run.png, and the heat map of a cosine matrix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtl.runs.files import read_metrics
from mtl.runs.terminal import mean, task_names, tolerance

if TYPE_CHECKING:
    import numpy as np

LINES = 6  # most pairs whose cosines are drawn over time: those with the lowest means
LABELS = 24  # most lines of a plot that are named beside their ends
LETTERS = 28  # most letters of a name
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
    from matplotlib.lines import Line2D

    train, val = read_metrics(folder, "train"), read_metrics(folder, "val")
    tasks = list(dict.fromkeys(task for row in train for task in task_names(row)))
    figure = Figure(figsize=(20, 8 + 0.2 * max(0, len(tasks) - 8)), layout="constrained")
    losses, metrics, weights, cosines, matrix, rates = figure.subplots(2, 3).flat
    styles = {task: _style(i) for i, task in enumerate(tasks)}
    for task, style in styles.items():
        _curve(losses, train, f"loss/{task}", None, **style, alpha=0.4, linewidth=0.8)
        _curve(losses, val, f"loss/{task}", task, **style, marker="o", markersize=3)
        _curve(weights, train, f"weight/{task}", task, **style, linewidth=1)
        for name in [n for n in (val[0] if val else {}) if n.startswith(f"{task}/")]:
            _curve(metrics, val, name, name, **style, marker="o", markersize=3)
    for i, name in enumerate(dict.fromkeys(name for row in train for name in row if name.startswith("lr/"))):
        _curve(rates, train, name, name.removeprefix("lr/"), **_style(i), linewidth=1)
    losses.set(title="loss: val, and train (faint)", yscale="log")
    metrics.set(title="val metrics")
    weights.set(title="weights of the tasks")
    rates.set(title="learning rates")
    _draw_cosines(cosines, train, tolerance(folder))
    for axes in (losses, metrics, weights, cosines, rates):
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        _label_ends(axes)
    _draw_matrix(figure, matrix, tasks, train)
    handles = [Line2D([], [], label=_short(task), **style) for task, style in styles.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=10, fontsize="small", title="tasks")
    figure.savefig(folder / "run.png", dpi=110)
    return folder / "run.png"


def _style(index: int) -> dict[str, Any]:
    """The colour and the dashes of a line, which tell forty apart."""
    return {"color": f"C{index % 10}", "linestyle": ("-", "--", ":", "-.")[index // 10 % 4]}


def _short(name: str, letters: int = LETTERS) -> str:
    if "~" in name:  # a pair of tasks, of which both must be seen
        return " ~ ".join(_short(task, letters // 2) for task in name.split("~"))
    return name if len(name) <= letters else f"{name[: letters - 1]}…"


def _label_ends(axes: Any) -> None:
    """The name of each line beside its end, right of the axes; of too many lines those with the extreme ends."""
    lines = [line for line in axes.lines if not line.get_label().startswith("_")]
    axes.autoscale_view()
    to_axes = axes.transData + axes.transAxes.inverted()
    ends = sorted(((float(to_axes.transform(line.get_xydata()[-1])[1]), line) for line in lines), key=lambda e: e[0])
    if len(ends) > LABELS:
        axes.set_title(f"{axes.get_title()} ({LABELS} of {len(ends)} named)")
        ends = ends[: LABELS // 2] + ends[-LABELS // 2 :]
    for (end, line), height in zip(ends, spread([end for end, _ in ends], 1 / LABELS), strict=True):
        x = float(to_axes.transform(line.get_xydata()[-1])[0])
        axes.annotate(
            _short(line.get_label()), (x, end), (1.04, height), xycoords="axes fraction", textcoords="axes fraction",
            color=line.get_color(), fontsize=8, va="center", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": line.get_color(), "lw": 0.6, "alpha": 0.6, "relpos": (0, 0.5)},
        )  # fmt: skip


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Ascending heights between 0 and 1 moved ``gap`` apart, with the smallest sum of squared moves."""
    import numpy as np
    from scipy.optimize import isotonic_regression

    if not heights:
        return []
    least = gap * np.arange(len(heights))  # what is left of the distances above this must not fall
    moved = isotonic_regression(np.asarray(heights) - least).x
    return list(np.clip(moved, 0, 1 - least[-1]) + least)


def _draw_cosines(axes: Any, train: list[dict[str, Any]], tolerance: float) -> None:
    """The cosines over time of the pairs with the lowest means. Within the grey band there is no conflict."""
    every = _pair_names(train)
    names = sorted(every, key=lambda name: mean(train, name))[:LINES]
    for i, name in enumerate(names):
        _curve(axes, train, name, name.removeprefix("conflict/cos/"), **_style(i), linewidth=1)
    axes.axhspan(-tolerance, tolerance, color="0.5", alpha=0.25, linewidth=0)
    axes.axhline(0, color="0.5", linewidth=0.8)
    largest = max((abs(v) for name in names for r in train if (v := r.get(name)) is not None), default=1.0)
    limit = min(1.05, max(4 * tolerance, 0.1, 1.1 * largest))  # noise must not fill the axes
    which = f"the {LINES} lowest of {len(every)} pairs" if len(every) > LINES else "all pairs"
    title = f"cosines of the task gradients, {which}\n(conflict: below the band of ±{tolerance:g})"
    axes.set(title=title, ylim=(-limit, limit))


def _draw_matrix(figure: Any, axes: Any, tasks: list[str], train: list[dict[str, Any]]) -> None:
    import numpy as np

    values = np.full((len(tasks), len(tasks)), np.nan)
    np.fill_diagonal(values, 1.0)
    for name in _pair_names(train):
        a, b = name.removeprefix("conflict/cos/").split("~")
        i, j = tasks.index(a), tasks.index(b)
        values[i, j] = values[j, i] = mean(train, name)
    image = axes.imshow(values, cmap="RdBu", vmin=-1, vmax=1)
    names = [_short(task) for task in tasks]
    axes.set(title="mean cosine over the run", xticks=range(len(tasks)), yticks=range(len(tasks)))
    axes.set_xticklabels(names, rotation=90 if len(tasks) > 4 else 0, fontsize=9)
    axes.set_yticklabels(names, fontsize=9)
    if len(tasks) <= 12:
        for (i, j), value in np.ndenumerate(values):
            text = "" if np.isnan(value) else f"{value:+.3f}" if abs(value) < 0.1 else f"{value:+.2f}"
            colour = "white" if abs(value) > 0.6 else "black"
            axes.text(j, i, text, ha="center", va="center", color=colour, size=min(10, 60 / len(tasks)))
    figure.colorbar(image, cax=axes.inset_axes((1.04, 0, 0.05, 1)), label="cosine")


def _curve(axes: Any, rows: list[dict[str, Any]], name: str, label: str | None, **style: Any) -> None:
    points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    if points:
        axes.plot(*zip(*points, strict=True), label=label, **style)


def _pair_names(rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row if name.startswith("conflict/cos/")))
