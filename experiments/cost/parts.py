"""Where a step's time goes: the framework's own functions, clocked from outside."""

from __future__ import annotations

import pkgutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from problems import problem
from steps import balanced, ours, with_metrics

from mtl.rules import MGDA
from mtl.strategies import Detached
from mtl.weightings import Equal

# What each part is, in the functions that do it; none calls another one of these.
PARTS = {
    "trunk forward": ["mtl.engine.engine.Engine.features"],
    "heads, forward and backward": ["mtl.engine.head.Head.backward", "mtl.engine.packed.PackedHeads.backward"],
    "Gram matrix": ["mtl.gradients.rows.Rows.gram"],
    "rule": ["mtl.rules.MGDA.forward"],
    "direction": ["mtl.gradients.rows.Rows.combine"],
    "conflict metrics": ["mtl.training.step_metrics.CosineAverage.update"],
    "trunk backward": ["mtl.gradients.cut.Cut.backward"],
    "optimizer": ["torch.optim.AdamW.step"],
}
FEWEST = 5


def parts(trunk: str, heads: str, tasks: int, batch: int, seconds: float, device: str) -> dict[str, Any]:
    """Seconds of each part of the detached step with its metrics and of a balanced one, for every step that was run."""
    own = problem(trunk, heads, tasks, batch, device)
    optimizer = torch.optim.AdamW(own.model.parameters())
    steps = {
        "detached, conflict metrics": with_metrics(own, Detached(Equal())),
        "MGDA, features": ours(own, balanced(own, MGDA())),
    }
    rows: dict[str, dict[str, list[float]]] = {name: {} for name in steps}
    began = time.perf_counter()
    while min(map(_rounds, rows.values())) < FEWEST + 1 or time.perf_counter() - began < seconds:
        for name, step in steps.items():
            optimizer.zero_grad()
            spent = dict.fromkeys([*PARTS, "the whole step"], 0.0)
            with clocked_parts(spent, torch.device(device)), clocked(spent, "the whole step", torch.device(device)):
                step()
                optimizer.step()
            spent["the rest"] = 2 * spent["the whole step"] - sum(spent.values())
            for part, value in spent.items():
                rows[name].setdefault(part, []).append(value)
    return {"parts": {name: {part: values[1:] for part, values in row.items()} for name, row in rows.items()}}


def _rounds(row: dict[str, list[float]]) -> int:
    return len(row.get("the whole step", ()))


@contextmanager
def clocked_parts(spent: dict[str, float], device: torch.device) -> Iterator[None]:
    """Inside, the time of every function in PARTS is added to its part's."""
    with ExitStack() as stack:
        for part, names in PARTS.items():
            for name in names:
                stack.enter_context(patch(name, _timed(pkgutil.resolve_name(name), spent, part, device)))
        yield


def _timed(function: Callable, spent: dict[str, float], part: str, device: torch.device) -> Callable:
    def run(*args: Any, **kwargs: Any) -> Any:
        with clocked(spent, part, device):
            return function(*args, **kwargs)

    return run


@contextmanager
def clocked(spent: dict[str, float], part: str, device: torch.device) -> Iterator[None]:
    """Add the time inside to ``spent``; on a GPU, when its work is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    yield
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    spent[part] += time.perf_counter() - start
