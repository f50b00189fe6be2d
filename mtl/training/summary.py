"""The content of summary.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mtl.metrics import higher_is_better
from mtl.runs.files import read_metrics
from mtl.runs.terminal import mean_conflict, only_metrics
from mtl.system import environment
from mtl.training.size import parameter_counts
from mtl.training.state import TrainState


def run_summary(
    state: TrainState, data: Any, test: dict[str, float], folder: Path, multiply_adds: int
) -> dict[str, Any]:
    """The run in ``folder`` in numbers: steps, metrics, size, untrained tasks, skips, times, memory, versions.

    ``multiply_adds``: of a sample's forward pass.
    """
    unreadable = state.unreadable_on_all_ranks()
    train, val = read_metrics(folder, "train"), read_metrics(folder, "val")
    last = train[-1] if train else {}
    return {
        "steps": state.step,
        "pruned": state.pruned,
        "test": test,
        "best": {
            "step": None if state.best is None else state.best_step,
            "metric": state.monitor.name,
            "mode": state.monitor.mode,
            "monitor": state.best,
            "val": state.best_metrics,
        },
        "last": {"val": only_metrics(val[-1]) if val else {}},
        "higher_is_better": {
            f"{task.name}/{name}": higher_is_better(metric)
            for task in state.tasks
            for name, metric in task.metrics.items()
        },
        "weights": state.weights.by_task(),
        "conflict": mean_conflict(train),
        "parameters": parameter_counts(state.model),
        "multiply_adds": multiply_adds,
        "untrained": state.untrained,
        "skipped": {
            "steps": state.skips.total,
            "samples": {split: sorted(indices) for split, indices in unreadable.items() if indices},
        },
        "seconds": {"total": state.seconds, "step": last.get("time/step"), "data": last.get("time/data")},
        "threads": torch.get_num_threads(),
        "device": environment.device_name(next(state.model.parameters()).device),
        "samples": {split: len(getattr(data, split)) for split in ("train", "val", "test")},
        "memory/peak": last.get("memory/peak"),
        "memory/peak_by_step": state.peaks,
        "versions": environment.describe(),
    }
