"""Step time and peak memory at a GPU's own scale: ours beside naive, the loop written by hand, and TorchJD's."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from peers import torchjd_steps
from problems import problem
from steps import Step, core_steps
from timing import clocked, peak

from mtl.system.memory import is_out_of_memory

ROWS = {
    "naive": "naive",
    "hand": "by hand: detached",
    "detached": "detached",
    "metrics": "detached, conflict metrics",
    "MGDA": "MGDA, features",
    "MGDA, parameters": "MGDA, parameters",
    "TorchJD": "TorchJD mtl_backward UPGrad, chunk=1",
}
# Trunk, heads, tasks, batch, seconds of rounds. The first that matter most: the part may be stopped.
TOKENS = [("transformer-1024", words, n, 4, 5.0) for words in ("32k", "128k", "64k") for n in (4, 1, 8, 2)]
IMAGES = [(trunk, "linear", n, 64, 4.0) for n in (4, 16, 2, 8) for trunk in ("resnet50-224", "vit_base-224")]
DENSE = [("resnet50-352", "dense", n, 8, 4.0) for n in (3, 8)]
TINY = [("transformer-64", "bytes", 2, 1, 0.0), ("test_resnet-32", "linear", 2, 2, 0.0)]


def trials(device: str, tiny: bool) -> dict[str, Callable[[], dict[str, Any]]]:
    """A row for each problem."""
    cells = TINY if tiny else [*TOKENS[:4], *IMAGES[:4], DENSE[0], *TOKENS[4:8], *IMAGES[4:], DENSE[1], *TOKENS[8:]]
    return {f"{t} {h} K={k} batch {b}": partial(cell, t, h, k, b, s, device) for t, h, k, b, s in cells}


def cell(trunk: str, heads: str, tasks: int, batch: int, seconds: float, device: str) -> dict[str, Any]:
    """Each step's milliseconds over naive's (naive: milliseconds) and its peak in GiB."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    own = problem(trunk, heads, tasks, batch, device)
    made = core_steps(own) | torchjd_steps(own)
    kept = {row: made[name] for row, name in ROWS.items() if name in made}
    peaks = {row: first(step, own.model, torch.device(device)) for row, step in kept.items()}
    timed = {row: step for row, step in kept.items() if not isinstance(peaks[row], str)}
    times: dict[str, list[float]] = {row: [] for row in timed}
    began = time.perf_counter()
    while len(times) and (min(map(len, times.values())) < 3 or time.perf_counter() - began < seconds):
        for row, step in timed.items():
            own.model.zero_grad()
            times[row].append(clocked(step, torch.device(device)))
    row = {
        f"{name} GiB": bytes_ if isinstance(bytes_, str) else f"{bytes_ / 2**30:.3g}" for name, bytes_ in peaks.items()
    }
    middle = {name: statistics.median(own) for name, own in times.items()}
    row |= {f"{name} ms": f"{1000 * value:.4g}" for name, value in middle.items()}
    if "naive" in middle:
        row |= {
            f"{name} / naive": f"{value / middle['naive']:.3f}" for name, value in middle.items() if name != "naive"
        }
    return {"ok": not isinstance(peaks["detached"], str)} | row


def first(step: Step, model: torch.nn.Module, device: torch.device) -> int | str:
    """The peak of the second run, in bytes; the first warms up. In words where memory is not enough."""
    try:
        for _ in range(2):
            model.zero_grad()
            found = peak(step, device)
        return found
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    model.zero_grad()
    gc.collect()
    return "out of memory"
