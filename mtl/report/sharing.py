"""What architectures decided: the weights that gates give to experts, their entropy, α, and how many are selected."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from mtl.report.runs import Run

if TYPE_CHECKING:
    from mtl.report.compare import Row

PREFIX = "train/architecture/"
LAST = 5  # logged values whose mean is what a run ended with
COLUMNS = ["", "task", "weights", "on own", "entropy", "of at most", "selected"]
CAPTION = (
    f"The mean of the last {LAST} logged batches, then of the seeds. Weights of a gate: from the largest to the "
    "smallest, sorted in each seed, because experts have no order that seeds share; on own: the part that a task's own "
    "experts get. The entropy, in nats, is 0 where one expert has all the weight, and at its most where all have as "
    "much. α: that of the task's own column, then the mean of the other columns', over all units."
)


def is_of_one_run(name: str) -> bool:
    """Whether a curve cannot be averaged over seeds: an expert's number means nothing beyond its run."""
    return name.startswith(f"{PREFIX}gate/")


def lines(row: Row) -> Iterator[list[str]]:
    """Of each task of a row with gates or α: what they came to. The cells of ``COLUMNS``."""
    runs = list(row.finished.values())
    for task in ("", *row.first.tasks):
        gates = [weights for run in runs if len(weights := _gate(run, task))]
        if gates:
            yield [row.label, task or "all", *_gate_cells(row, runs, task, gates)]
    for task in row.first.tasks:
        own, other = (_mean([value for run in runs for value in _alpha(run, task)[side]]) for side in (0, 1))
        if math.isfinite(own):
            yield [row.label, task, f"α {own:.2f}, {other:.2f}", *["–"] * 4]


def _gate_cells(row: Row, runs: list[Run], task: str, gates: list[list[float]]) -> list[str]:
    own = row.settings.get("architecture.own")
    largest = np.mean([sorted(weights, reverse=True) for weights in gates], axis=0)
    ending = f"/{task}" if task else ""
    entropy, selected = (_mean([_end(run, f"{name}{ending}") for run in runs]) for name in ("gate_entropy", "selected"))
    return [
        " ".join(f"{weight:.2f}" for weight in largest),
        "–" if own is None else f"{np.mean([sum(weights[:own]) for weights in gates]):.2f}",
        _text(entropy),
        f"{math.log(len(largest)):.2f}",
        _text(selected),
    ]


def _gate(run: Run, task: str) -> list[float]:
    """The weights of the experts, by their number; of the gate of all tasks if ``task`` is empty."""
    start = f"gate/{task}/" if task else "gate/"
    numbers = [int(n) for name in run.series if (n := name.removeprefix(PREFIX + start)).isdigit()]
    return [_end(run, f"{start}{number}") for number in sorted(numbers)]


def _alpha(run: Run, task: str) -> tuple[list[float], list[float]]:
    """α of the task's own column, and those of the other ones, of every unit."""
    own: list[float] = []
    other: list[float] = []
    for name in run.series:
        inner = re.fullmatch(rf"alpha/{re.escape(task)}~(.+)/\d+", name.removeprefix(PREFIX))
        last = re.fullmatch(rf"alpha_last/{re.escape(task)}/(\d+)", name.removeprefix(PREFIX))
        if inner or last:
            column = inner[1] if inner else run.tasks[int(last[1])] if last else ""
            (own if column == task else other).append(_end(run, name.removeprefix(PREFIX)))
    return own, other


def _end(run: Run, name: str) -> float:
    values = run.series.get(f"{PREFIX}{name}", (None, np.array([])))[1]
    return float(np.mean(values[-LAST:])) if len(values) else math.nan


def _mean(values: list[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return float(np.mean(known)) if known else math.nan


def _text(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "–"
