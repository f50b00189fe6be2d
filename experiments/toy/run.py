"""The toy problem by every rule from every start: the trajectories as a table, the end points, and the figures.

    python experiments/toy/run.py                                   # both protocols, the papers' rules
    python experiments/toy/run.py --experiments toy --rules mgda    # these anew; what else is in the table stays

Each trajectory is that of ``mtl-train +experiment=toy …`` to the last bit: the same configuration, model, strategy and
optimizer, without the loop's bookkeeping, which would take most of the time.
"""

from __future__ import annotations

import argparse
import csv
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mtl.config import load
from mtl.config.build import build
from mtl.data.toy import front, on_front
from mtl.engine.weighting import observe_after_update

HERE = Path(__file__).parent
POINTS = 140  # of a whole trajectory that go into the table
SETTLED = 1e-9  # a point that has moved less than this between two of them has ended
COLUMNS = ("experiment", "rule", "start", "step", "u", "v", "l1", "l2")

# The title in the figure, and what makes a rule on the command line.
RULES = {
    "sum": ("Sum of the losses", ["strategy=detached"]),
    "mgda": ("MGDA", ["strategy=mgda"]),
    "pcgrad": ("PCGrad", ["strategy=pcgrad"]),
    "cagrad": ("CAGrad", ["strategy=cagrad"]),
    "imtl_g": ("IMTL-G", ["strategy=imtl_g"]),
    "nash_mtl": ("Nash-MTL", ["strategy=nash_mtl", "trainer.grad_clip_norm=1"]),
    "aligned_mtl": ("Aligned-MTL", ["strategy=aligned_mtl"]),
    "upgrad": ("UPGrad", ["strategy=upgrad"]),
    "dualproj": ("DualProj", ["strategy=dualproj"]),
    "fairgrad": ("FairGrad, alpha 2", ["strategy=fairgrad", "strategy.rule.alpha=2"]),
    "famo": ("FAMO", ["weighting=famo", "weighting.gamma=0", "trainer.grad_clip_norm=1"]),
}
# Run when they are asked for: the papers above do not draw them. UPGrad of two tasks is PCGrad.
MORE = ("upgrad", "dualproj", "fairgrad", "famo")
# What a protocol sets for a rule beside that.
SETTINGS = {
    "toy": {"cagrad": ["strategy.rule.c=0.4"], "famo": ["+weighting.min_losses={l1:-2.1,l2:-21}"]},
    "toy_cagrad": {"famo": ["+weighting.min_losses={l1:-21,l2:-21}"]},
}
TITLES = {"toy": "Nash-MTL's protocol: L1 scaled by 0.1", "toy_cagrad": "CAGrad's protocol: equal scales"}


def overrides(experiment: str, rule: str, start: int) -> list[str]:
    """The command line of one trajectory."""
    return [f"+experiment={experiment}", f"data.start={start}", *RULES[rule][1], *SETTINGS[experiment].get(rule, [])]


def trajectory(arguments: list[str], steps: int | None = None) -> list[tuple[float, ...]]:
    """``(step, u, v, l1, l2)`` along what ``mtl-train`` with these arguments does in ``steps`` (null: all) steps."""
    torch.set_num_threads(1)
    cfg = load([*arguments, "device=cpu"])
    parts, state = build(cfg)
    model, strategy, clip = state.model, state.strategy, cfg.trainer.grad_clip_norm
    theta = model.backbone.theta
    inputs, targets = parts.data.train.batch([0], epoch=0)
    steps = steps or cfg.trainer.max_steps
    rows: list[tuple[float, ...]] = []
    for step in range(steps):
        state.optimizer.zero_grad()
        result = strategy.step(model, state.tasks, inputs, targets)
        if step % max(1, cfg.trainer.max_steps // POINTS) == 0:
            rows.append((step, *theta.tolist(), *(loss.item() for loss in result.losses.values())))
            if step and np.abs(np.subtract(rows[-1][1:3], rows[-2][1:3])).max() < SETTLED:
                return rows
        if clip is not None:
            nn.utils.clip_grad_norm_([theta], clip)
        state.optimizer.step()  # the experiments' scheduler is constant
        if strategy.weighting.needs_losses_after_update:
            observe_after_update(state.engine, strategy.weighting, inputs, targets)
    with torch.no_grad():
        predictions = model(inputs)
    losses = (task.loss(predictions[task.name], targets[task.name]).item() for task in state.tasks)
    return [*rows, (steps, *theta.tolist(), *losses)]


def run_all(experiments: list[str], rules: list[str], steps: int | None, processes: int, table: Path) -> None:
    """Run every rule from every start of every experiment; each trajectory goes into the table when it is there."""
    jobs = [(e, r, i) for e in experiments for r in rules for i in range(len(starts(e)))]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        running = {pool.submit(trajectory, overrides(*job), steps): job for job in jobs}
        for done in as_completed(running):
            job, rows = running[done], done.result()
            print(*job, f"step {rows[-1][0]}: u {rows[-1][1]:.3f}, v {rows[-1][2]:.3f}", flush=True)
            write(table, {**read(table), job: np.array(rows)})


def starts(experiment: str) -> list[list[float]]:
    """The starts of an experiment."""
    return [list(start) for start in load([f"+experiment={experiment}"]).data.starts]


def read(table: Path) -> dict[tuple[str, str, int], np.ndarray]:
    """The trajectories of a table, by experiment, rule and start."""
    if not table.exists():
        return {}
    with table.open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    return {
        (experiment, rule, int(start)): np.array([row[3:] for row in group], dtype=float)
        for (experiment, rule, start), group in groupby(rows, lambda row: tuple(row[:3]))
    }


def write(table: Path, trajectories: dict[tuple[str, str, int], np.ndarray]) -> None:
    """Write the table, in the order of the rules above."""
    experiments, rules = list(SETTINGS), list(RULES)
    order = sorted(trajectories, key=lambda job: (experiments.index(job[0]), rules.index(job[1]), job[2]))
    temporary = table.with_suffix(".tmp")  # what took an hour is never half a file
    with temporary.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for job in order:
            for step, *values in trajectories[job]:
                writer.writerow([*job, int(step), *(f"{value:.4f}" for value in values)])
    temporary.replace(table)


def end_points(trajectories: dict[tuple[str, str, int], np.ndarray], experiment: str) -> str:
    """A table in Markdown: for each rule and start whether it is on the front at the end, both losses, and u."""
    known = starts(experiment)
    lines = [
        "| rule | " + " | ".join(f"({u:g}, {v:g})".replace("-", "−") for u, v in known) + " |",
        "|---" * (len(known) + 1) + "|",
    ]
    for rule, (title, _) in RULES.items():
        ends = [trajectories[job][-1] for i in range(len(known)) if (job := (experiment, rule, i)) in trajectories]
        if len(ends) == len(known):
            lines.append(f"| {title} | " + " | ".join(map(_cell, ends)) + " |")
    return "\n".join(lines)


def _cell(end: np.ndarray) -> str:
    _, u, v, l1, l2 = end
    words = (
        f"{l1:.2f}, {l2:.2f} · u {u:.2f}" if on_front(u, v) else f"**missed** {l1:.2f}, {l2:.2f} · ({u:.1f}, {v:.1f})"
    )
    return words.replace("-0.00", "0.00").replace("-", "−")


def draw(trajectories: dict[tuple[str, str, int], np.ndarray], experiment: str, path: Path) -> None:
    """One panel a rule: the mean of the losses, the trajectories from early (dark) to late (light), the front."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    known = starts(experiment)
    rules = [rule for rule in RULES if all((experiment, rule, i) in trajectories for i in range(len(known)))]
    columns = min(4, len(rules))
    lines = -(-len(rules) // columns)
    figure = Figure(figsize=(3.1 * columns + 1.2, 3.1 * lines + 1.0), layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    axis = np.linspace(-11, 11, 221)
    mean = mean_loss(experiment, axis)
    edge = np.linspace(-7, 7, 141)
    last = max(trajectory[-1, 0] for (e, *_), trajectory in trajectories.items() if e == experiment)
    colours = ScalarMappable(Normalize(0, last), "plasma")
    for axes in panels.flat[len(rules) :]:
        axes.set_visible(False)
    for rule, axes in zip(rules, panels.flat, strict=False):
        axes.contour(axis, axis, mean, levels=14, cmap="Greys_r", linewidths=0.5)
        axes.plot(edge, front(edge), color="0.55", linewidth=5, solid_capstyle="round", zorder=2)
        for i in range(len(known)):
            _draw_trajectory(axes, trajectories[experiment, rule, i], colours)
        axes.set(title=RULES[rule][0], xlim=(-11, 11), ylim=(-11, 11), xticks=[-10, 0, 10], yticks=[-10, 0, 10])
    for axes in panels[:, 0]:
        axes.set_ylabel("v")
    figure.supxlabel("u", fontsize="medium")
    figure.colorbar(colours, ax=panels, shrink=0.6, label="step")
    legend = "contours: mean loss, grey: Pareto front, star: reached it, cross: missed it"
    figure.suptitle(f"{TITLES[experiment]}\n{legend}")
    figure.savefig(path, dpi=100)


def _draw_trajectory(axes: Any, rows: np.ndarray, colours: Any) -> None:
    from matplotlib.collections import LineCollection

    steps, points = rows[:, 0], rows[:, 1:3]
    segments = LineCollection(list(np.stack([points[:-1], points[1:]], 1)), linewidth=2, zorder=3)
    segments.set(cmap=colours.cmap, norm=colours.norm, array=steps[1:], capstyle="round")
    axes.add_collection(segments)
    axes.plot(*points[0], "o", color="black", markersize=5, zorder=4)
    end = dict(marker="*", markersize=11, color="tab:green") if on_front(*points[-1]) else dict(marker="X", color="red")
    axes.plot(*points[-1], markeredgecolor="black", markeredgewidth=0.6, zorder=5, **end)


def mean_loss(experiment: str, axis: np.ndarray) -> np.ndarray:
    """The mean of the losses on the grid ``axis`` × ``axis``."""
    parts, _ = build(load([f"+experiment={experiment}", "device=cpu"]))
    u, v = np.meshgrid(axis, axis)
    grid = torch.from_numpy(np.stack([u.ravel(), v.ravel()], 1))
    losses = torch.stack([head(grid)[:, 0] for head in parts.model.heads.values()])
    return losses.mean(0).numpy().reshape(u.shape)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    published = [rule for rule in RULES if rule not in MORE]
    parser.add_argument("--rules", nargs="*", choices=RULES, default=published, help="none: only draw what is there")
    parser.add_argument("--steps", type=int, help="steps of a trajectory; default: the protocol's")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=HERE, help="folder of trajectories.csv and the figures")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    table = options.out / "trajectories.csv"
    if options.rules:
        run_all(options.experiments, options.rules, options.steps, options.processes, table)
    trajectories = read(table)
    for experiment in dict.fromkeys(job[0] for job in trajectories):
        print(f"\n{TITLES[experiment]}\n\n{end_points(trajectories, experiment)}")
        draw(trajectories, experiment, options.out / f"{experiment.replace('toy', 'trajectories')}.png")


if __name__ == "__main__":
    main()
