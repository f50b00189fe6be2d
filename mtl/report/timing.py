"""What the same time buys: every strategy judged where the fastest one ended."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mtl.report.compare import Row
from mtl.report.runs import Run
from mtl.report.statistics import Interval, interval


@dataclass
class EqualTime:
    """How far a row came in the common time, and its best evaluation until then."""

    row: Row
    steps: float  # the mean over the seeds
    metrics: dict[str, Interval]  # of the val split


def equal_time(methods: Sequence[Row], metrics: Sequence[str]) -> tuple[float, list[EqualTime]]:
    """The shortest run's seconds of training, and what each row had reached by then on the validation split.

    A row's clock is the fastest reading of its step's time times the step, so evaluations and other work on the machine
    do not count. The best evaluation is that of the monitored metric. Rows without times are left out.
    """
    timed = [row for row in methods if row.finished and not math.isnan(row.step_seconds)]
    if len(timed) < 2:
        return math.nan, []
    budget = min(row.step_seconds * _most_steps(row) for row in timed)
    return budget, [_reached(row, budget, metrics) for row in timed]


def _reached(row: Row, seconds: float, metrics: Sequence[str]) -> EqualTime:
    found: dict[str, list[float]] = {}
    limit = min(seconds * (1 + 1e-9) / row.step_seconds, _most_steps(row))
    for run in row.finished.values():
        step = _best_step(run, limit)
        for name in metrics:
            steps, values = run.series.get(f"val/{name}", (np.array([]), np.array([])))
            if step is not None and step in steps:
                found.setdefault(name, []).append(float(values[list(steps).index(step)]))
    return EqualTime(row, limit, {name: interval(values) for name, values in found.items()})


def _best_step(run: Run, limit: float) -> int | None:
    trainer = run.config.get("trainer", {})
    name = str(trainer.get("monitor", "loss/total")).removeprefix("val/")
    steps, values = run.series.get(f"val/{name}", (np.array([]), np.array([])))
    within = steps <= limit
    if not within.any():
        return None
    best = np.argmin if trainer.get("mode", "min") == "min" else np.argmax
    return int(steps[within][best(values[within])])


def _most_steps(row: Row) -> int:
    return max(int(run.summary.get("steps", 0)) for run in row.finished.values())
