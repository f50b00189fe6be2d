"""What a training step costs beside another strategy's: with its spread, and only where the machine allows it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mtl.report.runs import Run
from mtl.report.statistics import SEEDS, Interval, interval

if TYPE_CHECKING:
    from mtl.report.compare import Row

SHARED = "shared the machine with another run of this report"
ELSEWHERE = "ran on another machine, device or number of threads"
IN_TURN = "ran before or after, not interleaved"
UNKNOWN = "ran at an unknown time"
BUSY = "ran beside other work: the load average was higher than their threads explain"
FEW = "are fewer than three"


@dataclass(frozen=True)
class TimeRatio:
    """Median step time over the reference's, with its spread from ``low`` to ``high``.

    The spread sets the quartiles of the readings against each other, or the runs' medians where they are further apart.
    ``doubts``: why it is no measure of what the strategy costs.
    """

    value: float
    low: float
    high: float
    doubts: tuple[str, ...] = ()

    @property
    def is_clear(self) -> bool:
        """Whether the step times differ by more than their spread, without a doubt."""
        return not self.doubts and not self.low <= 1 <= self.high


def time_ratio(row: Row, reference: Row, runs: Sequence[Run]) -> TimeRatio | None:
    """The ratio of two rows' step times; None without readings. ``runs``: all runs that may have shared the machine."""
    if not (len(row.step_times) and len(reference.step_times)):
        return None
    (low, middle, high), (low_other, middle_other, high_other) = _spread(row), _spread(reference)
    doubts = tuple(_doubts(list(row.finished.values()), list(reference.finished.values()), runs))
    return TimeRatio(middle / middle_other, low / high_other, high / low_other, doubts)


def _spread(row: Row) -> tuple[float, float, float]:
    """The median of a row's step times, between its quartile or its fastest run's median, and the other end."""
    low, middle, high = (float(value) for value in np.quantile(row.step_times, (0.25, 0.5, 0.75)))
    medians = [run.step_seconds for run in row.finished.values() if len(run.step_times)]
    return min(low, *medians), middle, max(high, *medians)


def _doubts(own: Sequence[Run], other: Sequence[Run], runs: Sequence[Run]) -> Iterable[str]:
    both = [*own, *other]
    if min(len(own), len(other)) < SEEDS:
        yield FEW
    if any(shared_machine(run, runs) for run in both):
        yield SHARED
    if any(run.is_busy for run in both):
        yield BUSY
    if len({(run.host, run.summary.get("device"), run.summary.get("threads")) for run in both}) > 1:
        yield ELSEWHERE
    starts = [[run.span[0] for run in side if run.span] for side in (own, other)]
    if any(run.span is None for run in both):
        yield UNKNOWN
    elif max(starts[0]) < min(starts[1]) or max(starts[1]) < min(starts[0]):
        yield IN_TURN


def shared_machine(run: Run, runs: Iterable[Run]) -> bool:
    """Whether another of ``runs`` ran on the same host at the same time, for more than the second of rounding."""
    return any(
        run.span is not None
        and other.span is not None
        and other is not run
        and other.host == run.host
        and (min(run.span[1], other.span[1]) - max(run.span[0], other.span[0])).total_seconds() > 1
        for other in runs
    )


@dataclass
class EqualTime:
    """The progress of a row within the common time, and its best evaluation until then."""

    row: Row
    steps: float
    metrics: dict[str, Interval]  # on the val split


def equal_time(methods: Sequence[Row], metrics: Sequence[str]) -> list[EqualTime]:
    """Each row's best validation metrics within the training time of the shortest run.

    A step counts as long as the reference's, or by its ratio where that is clear. So evaluations and other load do not
    count, and noise gives nobody more steps. The best evaluation is the one with the best monitored metric.
    Empty where no row's step time is clearly another than the reference's, or where the ratios have doubts.
    """
    timed = [row for row in methods if row.finished and row.time is not None]
    if not any(row.time and row.time.is_clear for row in timed) or len({id(row.reference) for row in timed}) > 1:
        return []
    if any(row.time and row.time.doubts for row in timed):
        return []
    cost = {id(row): row.time.value if row.time and row.time.is_clear else 1.0 for row in timed}
    budget = min(cost[id(row)] * _most_steps(row) for row in timed)  # in steps of the reference
    return [_within(row, budget / cost[id(row)], metrics) for row in timed]


def _within(row: Row, steps: float, metrics: Sequence[str]) -> EqualTime:
    found: dict[str, list[float]] = {}
    limit = min(steps * (1 + 1e-9), _most_steps(row))
    for run in row.finished.values():
        step = _best_step(run, limit)
        for name in metrics:
            at, values = run.series.get(f"val/{name}", (np.array([]), np.array([])))
            if step is not None and step in at:
                found.setdefault(name, []).append(float(values[list(at).index(step)]))
    return EqualTime(row, limit, {name: interval(values) for name, values in found.items()})


def _best_step(run: Run, limit: float) -> int | None:
    steps, values = run.series.get(f"val/{run.monitor}", (np.array([]), np.array([])))
    within = steps <= limit
    if not within.any():
        return None
    best = np.argmin if run.lower_is_better else np.argmax
    return int(steps[within][best(values[within])])


def _most_steps(row: Row) -> int:
    return max(int(run.summary.get("steps", 0)) for run in row.finished.values())
