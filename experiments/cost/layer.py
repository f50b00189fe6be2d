"""The layer mtl.Balance beside one backward of the summed losses, by hand and in Lightning's Trainer."""

from __future__ import annotations

import importlib.util
import logging
import random
import time
import warnings
from collections.abc import Callable
from typing import Any

import timing
import torch
from goals import SUM
from peers import torchjd_steps
from problems import Problem, problem
from steps import RULES, Step, sum_of_losses
from torch import Tensor, nn

import mtl
from mtl.rules import MGDA, UPGrad

STEPS, ROUNDS = 5, 5  # of a Trainer in its turn, the first of which is not timed; turns at least
ALONE = 26  # times that the layer alone is run, the first of which warms up


def layer(trunk: str, heads: str, tasks: int, batch: int, seconds: float, device: str) -> dict[str, Any]:
    """Forward and backward of one batch, with the layer, without it, and by TorchJD's mtl_backward."""
    own = problem(trunk, heads, tasks, batch, device)
    steps = {SUM: sum_of_losses(own), f"{SUM}, again": sum_of_losses(own)}
    steps |= {f"mtl.Balance({rule}())": layer_step(own, made) for rule, made in rules().items()}
    steps["mtl.Balance(None)"] = layer_step(own, None)
    quickest = "TorchJD mtl_backward UPGrad, chunk=1, optimize_gramian"
    steps |= {name: step for name, step in torchjd_steps(own).items() if name == quickest}
    rows = timing.interleaved(steps, own.model, seconds)
    made = {f"mtl.Balance({name}())": rule() for name, rule in RULES.items()} | {"mtl.Balance(None)": None}
    return {"rows": rows, "alone": {row: alone(own, rule) for row, rule in made.items()}}


def rules() -> dict[str, nn.Module]:
    """A rule that solves one quadratic program, and one that solves one for each task."""
    return {"MGDA": MGDA(), "UPGrad": UPGrad()}


def alone(problem: Problem, rule: nn.Module | None) -> list[float]:
    """Seconds that the layer itself takes, forward and backward: of heads on ready features, the trunk left out."""
    features, balance = problem.engine.features(problem.inputs).detach(), mtl.Balance(rule, names(problem))
    forward, combine, spent = balance.forward, balance.combine, []

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            start = timing.clock()
            result = function(*arguments)
            spent[-1] += timing.clock() - start
            return result

        return run

    balance.combine = timed(combine)
    for _ in range(ALONE):
        spent.append(0.0)
        summed(problem, timed(forward)(features.clone().requires_grad_())).backward()
    return spent[1:]


def names(problem: Problem) -> list[str]:
    """The tasks' names."""
    return [task.name for task in problem.tasks]


def layer_step(problem: Problem, rule: nn.Module | None) -> Step:
    """Plain PyTorch with the layer between trunk and heads."""
    balance = mtl.Balance(rule, names(problem))

    def step() -> None:
        summed(problem, balance(problem.engine.features(problem.inputs))).backward()

    return step


def summed(problem: Problem, features: dict[str, Any]) -> Tensor:
    """The sum of the losses, each of its task's features."""
    engine, targets = problem.engine, problem.targets
    losses = [engine.loss(task, features[task.name], targets[task.name]) for task in problem.tasks]
    return sum(losses[1:], losses[0])


def lightning(trunk: str, heads: str, tasks: int, batch: int, seconds: float, device: str) -> dict[str, Any]:
    """Training steps of Lightning's Trainer, optimizer and all: the sum, the layer, TorchJD's manual optimization."""
    for name in ("lightning", "torchjd"):
        if importlib.util.find_spec(name) is None:
            return {"not measured": f"It is not installed: pip install {name}."}
    modules = lightning_modules(problem(trunk, heads, tasks, batch, device))
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # which importing it has set to INFO
    warnings.filterwarnings("ignore", module="lightning")
    rows: dict[str, dict[str, Any]] = {name: {"seconds": []} for name in modules}
    order, began = random.Random(0), time.perf_counter()
    while len(rows[SUM]["seconds"]) < ROUNDS or time.perf_counter() - began < seconds:
        for name in order.sample(list(modules), len(modules)):
            rows[name]["seconds"].append(seconds_of_a_step(modules[name], device))
    return {"rows": rows}


def lightning_modules(problem: Problem) -> dict[str, Any]:
    """A LightningModule for each row, all of one model."""
    from lightning import LightningModule
    from torchjd.aggregation import UPGrad as TheirUPGrad
    from torchjd.autojac import jac_to_grad, mtl_backward

    tasks = names(problem)

    class Plain(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = problem.model

        def training_step(self, batch: Any) -> Any:
            return summed(problem, dict.fromkeys(tasks, problem.engine.features(problem.inputs)))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=1e-6)

    class Layer(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.balance = mtl.Balance(UPGrad(), tasks)

        def training_step(self, batch: Any) -> Any:
            return summed(problem, self.balance(problem.engine.features(problem.inputs)))

    class TorchJD(Plain):  # as their documentation has it
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization, self.aggregator = False, TheirUPGrad()

        def training_step(self, batch: Any) -> None:
            features, engine = problem.engine.features(problem.inputs), problem.engine
            losses = [engine.loss(task, features, problem.targets[task.name]) for task in problem.tasks]
            optimizer = self.optimizers()
            optimizer.zero_grad()
            mtl_backward(losses, features=features, parallel_chunk_size=1)  # one by one is quicker on a CPU
            jac_to_grad(problem.model.shared_parameters(), self.aggregator)
            optimizer.step()

    return {SUM: Plain(), f"{SUM}, again": Plain(), "mtl.Balance(UPGrad())": Layer(), "TorchJD's recipe": TorchJD()}


def seconds_of_a_step(module: Any, device: str) -> float:
    """The mean over the steps of one Trainer, from batch to batch, without the first."""
    from lightning import Callback, Trainer

    class Clock(Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, number: int) -> None:
            if device == "cuda":
                torch.cuda.synchronize()
            times.append(timing.clock())

    times: list[float] = []
    Trainer(
        accelerator="gpu" if device == "cuda" else "cpu", max_steps=STEPS, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[Clock()],
    ).fit(module, torch.utils.data.DataLoader(range(STEPS)))  # fmt: skip
    return (times[-1] - times[1]) / (len(times) - 2)
