"""Losses and gradients of batches that a step is not taken on. They leave no trace in the model.

Unlike in a step every head's graph is alive at once, and normalisation layers keep their running statistics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from mtl.engine.engine import Engine
from mtl.gradients.rows import ParameterRows
from mtl.tasks import learnable_tasks

Batch = tuple[Any, Mapping[str, Any]]  # inputs and targets


def rate_of_shared(rates: Mapping[str, float]) -> float:
    """The learning rate of the backbone's group, of several the highest; of the heads' where it has none."""
    own = [rate for name, rate in rates.items() if name.split(".")[0] == "backbone"]
    return max(own or rates.values())


def copied(inputs: Any) -> Any:
    """A copy of a batch's inputs: a trunk that normalises them in place would do it once more in the next pass."""
    return pytree.tree_map_only(Tensor, torch.clone, inputs)


def losses_at(
    engine: Engine, batch: Batch, parameters: Mapping[str, Tensor] = MappingProxyType({}), precise: bool = False
) -> dict[str, Tensor]:
    """The losses of the tasks with a label in ``batch``, in the graph, as in training.

    ``parameters``: values that stand in for the model's own, by their names in it. ``precise``: in the parameters' own
    precision whatever the training's is.
    """
    inputs, targets = batch
    buffers = {name: buffer.clone() for name, buffer in engine.model.named_buffers()}
    with engine.eager_unsharded(), nullcontext() if precise else engine.autocast():
        predictions = functional_call(engine.model, {**buffers, **parameters}, (copied(inputs),))
        tasks = learnable_tasks(engine.tasks, targets)
        return {task.name: task.loss(predictions[task.name], targets[task.name]) for task in tasks}


def parameter_gram(engine: Engine, batches: Sequence[Batch]) -> tuple[list[str], Tensor]:
    """The Gram matrix of the tasks' gradients at the trunk's parameters in each batch: the tasks of all of the batches.

    Its blocks [K, K] hold the products of a batch's gradients with another's, in the order of ``batches``.
    """
    parameters = engine.trained_shared_parameters()
    rows, tasks = ParameterRows(parameters), list[list[str]]()
    for batch in batches:
        losses = losses_at(engine, batch)
        tasks.append(list(losses))
        for loss in losses.values():
            rows.append(_gradient(loss, parameters, engine.precision.scale))
    names = [name for name in tasks[0] if all(name in own for own in tasks)]
    starts = [sum(map(len, tasks[:n])) for n in range(len(tasks))]
    places = [start + own.index(name) for start, own in zip(starts, tasks, strict=True) for name in names]
    return names, rows.gram()[places][:, places]


def _gradient(loss: Tensor, parameters: Sequence[nn.Parameter], loss_scale: float) -> Sequence[Tensor | None]:
    if not loss.requires_grad:
        return [None] * len(parameters)
    vector = torch.full_like(loss, loss_scale)
    found = torch.autograd.grad(loss, parameters, vector, retain_graph=True, allow_unused=True)
    return found if loss_scale == 1 else [None if g is None else g.div_(loss_scale) for g in found]
