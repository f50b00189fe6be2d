"""Rows compared at equal training time: the total time of the fastest run."""

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
    """The progress of a row within the common time, and its best evaluation until then."""

    row: Row
    steps: float  # the mean over the seeds
    metrics: dict[str, Interval]  # on the val split


def equal_time(methods: Sequence[Row], metrics: Sequence[str]) -> tuple[float, list[EqualTime]]:
    """The training time of the shortest run, in seconds, and each row's best validation metrics within that time.

    A row's training time is its smallest step time times the step, so evaluations and other load on the machine do not
    count. The best evaluation is the one with the best monitored metric. Rows without step times are left out.
    """
    timed = [row for row in methods if row.finished and not math.isnan(row.step_seconds)]
    if len(timed) < 2:
        return math.nan, []
    budget = min(row.step_seconds * _most_steps(row) for row in timed)
    return budget, [_within(row, budget, metrics) for row in timed]


def _within(row: Row, seconds: float, metrics: Sequence[str]) -> EqualTime:
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
    name, mode = run.monitor
    steps, values = run.series.get(f"val/{name}", (np.array([]), np.array([])))
    within = steps <= limit
    if not within.any():
        return None
    best = np.argmin if mode == "min" else np.argmax
    return int(steps[within][best(values[within])])


def _most_steps(row: Row) -> int:
    return max(int(run.summary.get("steps", 0)) for run in row.finished.values())
