"""Two processes on one device: their gradients are those of one process with the whole batch."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from problems import Problem, problem
from steps import balanced

from mtl.distributed.data_parallel import data_parallel
from mtl.engine.engine import Engine
from mtl.rules import MGDA
from mtl.strategies import Detached, Strategy
from mtl.weightings import Equal

PROBLEM = ("test_vit-32", "mlp", 2, 4)
SECONDS = 40  # for a backend to answer in


def trials(device: str, tiny: bool) -> dict[str, Callable[[], dict[str, Any]]]:
    """A row for each strategy; NCCL first, which may refuse two processes on one GPU, then gloo."""
    backends = ["gloo"] if device != "cuda" else ["cpu:gloo,cuda:nccl", "gloo"]
    return {name: partial(two, name, device, backends) for name in (("detached",) if tiny else ("detached", "MGDA"))}


def two(name: str, device: str, backends: list[str]) -> dict[str, Any]:
    """The relative distance of the gradients, and the backend that did it."""
    refused = []
    for backend in backends:
        try:
            found = in_two_processes(name, device, backend)
        except RuntimeError as error:
            refused.append(f"{backend}: {error}")
            continue
        own = problem(*PROBLEM, device)
        whole = flat_gradient(Engine(own.model, own.tasks), own, strategy(name, own), slice(None))
        error = ((whole - found).norm() / whole.norm()).item()
        return {
            "ok": error < 1e-3,
            "relative distance": f"{error:.2g}",
            "backend": backend,
            "refused": "; ".join(refused),
        }
    raise RuntimeError("; ".join(refused))


def in_two_processes(name: str, device: str, backend: str) -> torch.Tensor:
    """Their gradient; RuntimeError with a rank's own reason."""
    processes = multiprocessing.get_context("forkserver")
    with tempfile.TemporaryDirectory() as folder:
        started = [processes.Process(target=rank, args=(r, name, device, backend, folder)) for r in range(2)]
        for process in started:
            process.start()
        until = time.monotonic() + SECONDS
        for process in started:
            process.join(max(0, until - time.monotonic()))
        for process in started:
            process.kill()
            process.join()
        reasons = [path.read_text() for path in sorted(Path(folder).glob("failed*"))]
        if reasons or any(process.exitcode for process in started):
            raise RuntimeError(reasons[0] if reasons else f"no answer in {SECONDS} s")
        return torch.load(Path(folder) / "gradient.pt")


def rank(number: int, name: str, device: str, backend: str, folder: str) -> None:
    """One of the processes: half of the batch, on the same device as the other."""
    try:
        store = f"file://{folder}/store"
        dist.init_process_group(backend, store, timedelta(seconds=SECONDS), world_size=2, rank=number)
        own = problem(*PROBLEM, device)
        engine = Engine(own.model, own.tasks)
        engine.wrapped = data_parallel(own.model.backbone, engine.device, all_parameters_used=True)
        found = flat_gradient(engine, own, strategy(name, own), slice(2 * number, 2 * number + 2))
        if number == 0:
            torch.save(found, Path(folder) / "gradient.pt")
        dist.destroy_process_group()
    except Exception as error:
        (Path(folder) / f"failed{number}").write_text(f"{type(error).__name__}: {error}".splitlines()[0])
        raise SystemExit(1) from error


def strategy(name: str, own: Problem) -> Strategy:
    """By its row."""
    return balanced(own, MGDA()) if name == "MGDA" else Detached(Equal())


def flat_gradient(engine: Engine, own: Problem, strategy: Strategy, samples: slice) -> torch.Tensor:
    """All gradients after a step with these samples of the batch, as one vector in float64 on the CPU."""
    targets = {name: target[samples] for name, target in own.targets.items()}
    strategy.run(engine, own.inputs[samples], targets)
    return torch.cat([p.grad.flatten().double().cpu() for p in own.model.parameters() if p.grad is not None])
