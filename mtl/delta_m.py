"""Δm, the relative change against single-task baselines, in the field's two conventions.

The conventions disagree: by metric, a task with many metrics counts more. A published method can be better than its
baselines in one and worse in the other, so reports always give both, by name.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

Metrics = Mapping[str, float]  # by "<task>/<metric>"


def relative_changes(values: Metrics, baselines: Metrics, higher_is_better: Mapping[str, bool]) -> dict[str, float]:
    """``(M - B) / |B|`` of every metric, in percent, with the sign such that *below zero is better*.

    NaN if B is 0 or M has the opposite sign: a share of such a baseline means nothing. KeyError for a metric without a
    baseline or a direction.
    """
    changes = {}
    for name, value in values.items():
        baseline = baselines[name]
        change = 100 * (value - baseline) / abs(baseline) if baseline and value * baseline >= 0 else float("nan")
        changes[name] = -change if higher_is_better[name] else change
    return changes


def by_metric(values: Metrics, baselines: Metrics, higher_is_better: Mapping[str, bool]) -> float:
    """Δm in percent as the mean over all metrics; *lower is better*.

    Maninis et al. 2019 (equation 4); with this sign in Navon et al. 2022 (Nash-MTL) and those after it.
    """
    return float(np.mean(list(relative_changes(values, baselines, higher_is_better).values())))


def by_task(values: Metrics, baselines: Metrics, higher_is_better: Mapping[str, bool]) -> float:
    """Δp in percent as the mean over the tasks of the mean over the task's metrics; *higher is better*.

    Lin & Zhang 2023 (LibMTL).
    """
    tasks: dict[str, list[float]] = {}
    for name, change in relative_changes(values, baselines, higher_is_better).items():
        tasks.setdefault(task_of(name), []).append(-change)
    return float(np.mean([np.mean(changes) for changes in tasks.values()]))


def task_of(metric: str) -> str:
    """The task of a metric: ``left`` for ``left/accuracy`` and for ``loss/left``."""
    first, _, last = metric.partition("/")
    return last if first == "loss" else first
