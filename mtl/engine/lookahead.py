"""One step on each task alone, taken on a copy of the model: the affinity that its first order estimates."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mtl.affinity import first_order_affinity, relative
from mtl.engine.engine import Engine
from mtl.engine.look import copied
from mtl.gradients.rows import ParameterRows
from mtl.model import graph_tensors
from mtl.system.environment import rng_state, set_rng_state
from mtl.tasks import Task, learnable_tasks


@dataclass(frozen=True)
class Lookahead:
    """The affinities of the ``tasks`` of one batch, ``[K, K]``, float64 on the CPU.

    ``affinity``: from the steps that were taken. ``first_order``: its estimate from the gradients that they followed.
    """

    tasks: list[str]
    affinity: Tensor
    first_order: Tensor


def look_ahead(engine: Engine, inputs: Any, targets: Mapping[str, Any], lr: float) -> Lookahead | None:
    """Take a step of plain gradient descent on each task's own loss, and evaluate every task on the same batch.

    The steps move what the tasks share: the trunk's parameters, and those that several heads hold. Everything happens
    on a copy of the model and of the losses, in their modes, without mixed precision, which would round a small step
    away; and every pass draws the same random numbers: the model, its statistics and the global generators are as
    before. It costs one forward and K backward passes of the trunk, K forward passes more, a copy of the model and K
    copies of the shared parameters. None where the batch has labels of fewer than two tasks, or nothing that they share
    is trained. In a single process only.
    """
    own = _copied(engine)
    tasks = learnable_tasks(own.tasks, targets)
    parameters = [*own.trained_shared_parameters(), *own.trained_common_parameters()]
    if len(tasks) < 2 or not parameters:
        return None
    with _same_draws() as start:
        start()
        losses, rows = _gradients(own, tasks, inputs, targets, parameters)
        after = []
        for task in range(len(tasks)):
            with _moved(parameters, rows.row(task), lr), torch.no_grad():
                start()
                features = own.features(copied(inputs))
                after.append(torch.stack([own.loss(t, features, targets[t.name]).double() for t in tasks]).cpu())
    affinity = relative(losses - torch.stack(after), losses)
    return Lookahead([task.name for task in tasks], affinity, first_order_affinity(rows.gram(), losses, lr))


def _copied(engine: Engine) -> Engine:
    modules = [task.loss for task in engine.tasks if isinstance(task.loss, nn.Module)]
    memo: dict[int, Any] = {}
    for module in modules:
        memo |= graph_tensors(module)
    model = copy.deepcopy(engine.model, memo)
    tasks = [replace(task, loss=copy.deepcopy(task.loss, memo)) for task in engine.tasks]
    return Engine(model, tasks)  # and no mixed precision


def _gradients(
    engine: Engine, tasks: Sequence[Task], inputs: Any, targets: Mapping[str, Any], parameters: Sequence[nn.Parameter]
) -> tuple[Tensor, ParameterRows]:
    """The tasks' losses [K], float64, and their gradients; the graph of one head is alive at a time."""
    losses, rows = [], ParameterRows(parameters)
    features = engine.features(copied(inputs))
    for task in tasks:
        loss = engine.loss(task, features, targets[task.name])
        gradients: Sequence[Tensor | None] = [None] * len(parameters)
        if loss.requires_grad:
            gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        rows.append(gradients)
        losses.append(loss.detach().double())
    return torch.stack(losses).cpu(), rows


@contextmanager
def _moved(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor], lr: float) -> Iterator[None]:
    before = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for p, gradient in zip(parameters, gradients, strict=True):
            p.sub_(gradient, alpha=lr)
    yield
    with torch.no_grad():
        for p, value in zip(parameters, before, strict=True):
            p.copy_(value)


@contextmanager
def _same_draws() -> Iterator[Any]:
    """A function that brings the global generators back to where they were; at the end they are there as well."""
    state = rng_state()
    try:
        yield lambda: set_rng_state(state)
    finally:
        set_rng_state(state)
