"""The clock and the scales: steps in turn in one process, and the peak memory of each."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from goals import is_ours
from steps import Step
from torch import nn

from mtl.system.memory import PeakMemory

FULL, LIGHT = 3, 5  # rounds at least: of every step, and further ones of those that cost little
clock = time.perf_counter  # of a CPU's steps
HEAVY = 3  # what costs more than so many times the first step takes part in the full rounds only


def interleaved(steps: Mapping[str, Step], model: nn.Module, seconds: float) -> dict[str, dict[str, Any]]:
    """Seconds of every step in every round (null: it sat that one out), and the bytes of its first run's peak.

    That first run warms up and is not timed; where it raises and is a peer's, the reason is all: ``failed``. Then all
    steps take part in each round until half of the time is spent; the rest is for rounds of those that cost little. The
    order in a round is random: in a ring every step would always find what the same one has left in the caches.
    """
    device = next(model.parameters()).device
    rows: dict[str, dict[str, Any]] = {}
    if device.type == "cuda":  # the workspaces that its libraries take and keep are no step's own
        next(iter(steps.values()))()
    for name, step in steps.items():
        model.zero_grad()
        try:
            rows[name] = {"peak": peak(step, device), "seconds": []}
        except Exception as error:
            if is_ours(name):
                raise
            rows[name] = {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}
    timed = {name: row for name, row in rows.items() if "seconds" in row}
    order, began = random.Random(0), time.perf_counter()

    def rounds(names: Sequence[str], until: float, least: int) -> None:
        count = 0
        while count < least or time.perf_counter() - began < until:
            count += 1
            for row in timed.values():
                row["seconds"].append(None)
            gc.collect()
            for name in order.sample(names, len(names)):
                model.zero_grad()
                rows[name]["seconds"][-1] = clocked(steps[name], device)

    gc.collect()
    gc.freeze()
    gc.disable()
    rounds(list(timed), seconds / 2, FULL)
    first, *_ = timed.values()
    rounds([name for name, row in timed.items() if row["seconds"][-1] <= HEAVY * first["seconds"][-1]], seconds, LIGHT)
    gc.enable()
    gc.unfreeze()
    return rows


def clocked(step: Step, device: torch.device) -> float:
    """Seconds on the clock; on a GPU between two events."""
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        step()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000
    start = clock()
    step()
    return clock() - start


def peak(step: Step, device: torch.device) -> int:
    """Bytes above what was there before, with what the step keeps for the next time."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    with PeakMemory() as memory:
        step()
    return memory.peak
