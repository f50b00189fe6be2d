"""Measure one cell in this process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import startup
import timing
import torch
from layer import layer, lightning
from loop import loop
from parts import parts
from peers import libmtl_steps, not_possible, torchjd_steps
from problems import Problem, problem
from steps import (
    Step,
    balanced,
    core_steps,
    detached_by_hand,
    looking_steps,
    mgda_by_hand,
    our_steps,
    ours,
    parameter_steps,
    rule_steps,
    with_metrics,
)
from timing import interleaved

from mtl.rules import MGDA
from mtl.strategies import Detached, Naive
from mtl.system import environment
from mtl.system.allocator import RetainedHeap
from mtl.weightings import Equal

GROUPS: dict[str, Callable[[Problem], dict[str, Step]]] = {
    "core": core_steps,
    "rules": rule_steps,
    "parameters": parameter_steps,
    "looking": looking_steps,
    "torchjd": torchjd_steps,
    "libmtl": libmtl_steps,
}


def steps(
    trunk: str,
    heads: str,
    tasks: int,
    batch: int,
    groups: Sequence[str],
    without: Sequence[str],
    seconds: float,
    device: str,
) -> dict[str, Any]:
    """Every step of these groups on one problem, but for the rows that match one of the patterns ``without``."""
    own = problem(trunk, heads, tasks, batch, device)
    made = {name: step for group in groups for name, step in GROUPS[group](own).items()}
    kept = {name: step for name, step in made.items() if not any(fnmatch(name, pattern) for pattern in without)}
    rows = interleaved(kept, own.model, seconds)
    missing = not_possible(own) if "libmtl" in groups else {}
    missing |= {name: rows.pop(name)["failed"] for name in kept if "failed" in rows[name]}
    return {"rows": rows, "not possible": missing}


def heads_alone(tasks: int, batch: int, seconds: float, device: str) -> dict[str, Any]:
    """Heads on a trunk that costs nothing, one by one and, where a strategy does so by itself, as one product."""
    looped, packed = (problem("scale", heads, tasks, batch, device) for heads in ("looped", "binary"))
    made = {"naive": ours(looped, Naive(Equal())), "naive, again": ours(looped, Naive(Equal()))}
    made |= {"by hand: detached": detached_by_hand(looped), "by hand: MGDA, features": mgda_by_hand(looped)}
    for own, suffix in ((looped, ""), (packed, ", packed")):
        made[f"detached{suffix}"] = ours(own, Detached(Equal()))
        made[f"detached, conflict metrics{suffix}"] = with_metrics(own, Detached(Equal()))
        made[f"MGDA, features{suffix}"] = ours(own, balanced(own, MGDA()))
    both = torch.nn.ModuleList([looped.model, packed.model])
    return {"rows": interleaved(made, both, seconds)}


def bf16(trunk: str, heads: str, tasks: int, batch: int, seconds: float, device: str) -> dict[str, Any]:
    """The detached step in float32 and in bf16, where the processor has bf16."""
    if device == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return {"not measured": "this processor has no bf16 instructions that oneDNN uses"}
    own = problem(trunk, heads, tasks, batch, device)
    step = ours(own, Detached(Equal()))

    def within(precision: torch.dtype | None) -> Step:
        def run() -> None:
            own.engine.precision.dtype = precision
            step()

        return run

    made = {"float32": within(None), "bf16": within(torch.bfloat16)}
    return {"rows": interleaved(made, own.model, seconds)}


def high_water(trunk: str, heads: str, tasks: int, batch: int, row: str, seconds: float, device: str) -> dict[str, Any]:
    """How far the process's memory rises in its first step, as the system sees it."""
    step = our_steps(problem(trunk, heads, tasks, batch))[row]
    if not Path("/proc/self/clear_refs").exists():
        return {"not measured": "this system has no /proc/self/clear_refs"}
    Path("/proc/self/clear_refs").write_text("5")  # the mark falls to what the process has now
    before = _memory("VmRSS")
    step()
    return {"row": row, "bytes": _memory("VmHWM") - before}


def _memory(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"{key}:")]
    return int(line.split()[1]) * 1024


KINDS: dict[str, Callable[..., dict[str, Any]]] = {
    "steps": steps,
    "heads_alone": heads_alone,
    "layer": layer,
    "lightning": lightning,
    "parts": parts,
    "bf16": bf16,
    "high_water": high_water,
    "loop": loop,
    "startup": startup.commands,
    "demo": startup.demo,
}

# Kinds for which memory is kept from step to step, as in a run.
KEEP = ("steps", "layer", "lightning", "heads_alone", "parts", "bf16")


def measure(
    kind: str,
    arguments: dict[str, Any],
    seconds: float,
    device: str = "cpu",
    threads: int | None = None,
    cpu_time: bool = False,
) -> dict[str, Any]:
    """The cell's numbers, and what they were measured on."""
    timing.clock = time.process_time if cpu_time else time.perf_counter
    if threads is not None:
        torch.set_num_threads(threads)
    began = time.perf_counter()
    with RetainedHeap(device == "cpu" and kind in KEEP):
        result = KINDS[kind](**arguments, seconds=seconds, device=device)
    machine = torch.cuda.get_device_name(device) if device != "cpu" else _processor()
    return result | {
        "kind": kind,
        "arguments": arguments,
        "device": device,
        "took": time.perf_counter() - began,
        "machine": f"{machine}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "clock": timing.clock.__name__,
        "versions": environment.describe() | {name: _version(name) for name in ("torchjd", "LibMTL")},
    }


def _version(package: str) -> str | None:
    return version(package) if find_spec(package) else None


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), "unknown processor")
