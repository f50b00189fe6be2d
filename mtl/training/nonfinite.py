"""Losses and gradients that are not finite: found before anything learns from them, named, and stopped or skipped."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mtl.distributed.collectives import is_distributed
from mtl.distributed.sharding import full_tensor, is_sharded
from mtl.engine.engine import Engine
from mtl.gradients.cut import Cut
from mtl.model import MultiTaskModel
from mtl.strategies import StepResult
from mtl.tasks import Task, loss_modules, present_tasks

log = logging.getLogger(__name__)


def clip(parameters: Sequence[nn.Parameter], max_norm: float, norm: Tensor) -> None:
    """Scale the gradients down to ``max_norm`` where their total ``norm`` is above it."""
    for group in _apart(parameters):
        nn.utils.clip_grads_with_norm_(group, max_norm, norm)


def total_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """The norm of the parameters' gradients, in float64 where their squares leave float32's range."""
    norms = [_norm([p.grad for p in group if p.grad is not None]) for group in _apart(parameters)]
    return norms[0] if len(norms) == 1 else torch.stack(norms).norm()


def _apart(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Those that are spread over several processes apart from the others: torch does not take them together."""
    groups = [[p for p in parameters if is_sharded(p) == sharded] for sharded in (False, True)]
    return [group for group in groups if group] or [[]]


def _norm(gradients: list[Tensor]) -> Tensor:
    norm = full_tensor(nn.utils.get_total_norm(gradients, foreach=None))
    if not torch.isfinite(norm) and all(full_tensor(g.isfinite().all()) for g in gradients):
        norm = full_tensor(nn.utils.get_total_norm([g.double() for g in gradients]))
    return norm


def all_finite(result: StepResult, grad_norm: Tensor) -> bool:
    """Whether a step's losses and the norm of its gradient are finite; one answer from the device."""
    values = [value.double() for value in result.losses.values()]
    return bool(torch.stack([*values, grad_norm.double().to(values[0].device if values else "cpu")]).isfinite().all())


class StepSnapshot:
    """What ``on_nan=skip`` needs: a step that is taken back as if it had not been.

    The parameters and the optimizer wait for the check, but a step has already moved what it counts and averages: the
    model's and the losses' buffers, and the strategy with its weighting and rule. These are copied before each step.
    """

    def __init__(self, model: MultiTaskModel, tasks: Sequence[Task], strategy: nn.Module) -> None:
        self._strategy = strategy
        self._buffers = [*model.buffers(), *loss_modules(tasks).buffers()]

    def save(self) -> None:
        """Copy what the coming step may move."""
        self._kept = [buffer.clone() for buffer in self._buffers]
        self._state = copy.deepcopy(self._strategy.state_dict())

    def restore(self) -> None:
        """Put it back as it was."""
        with torch.no_grad():
            for buffer, kept in zip(self._buffers, self._kept, strict=True):
                buffer.copy_(kept)
        self._strategy.load_state_dict(self._state)


def diagnose(
    engine: Engine,
    inputs: Any,
    targets: Mapping[str, Any],
    result: StepResult,
    indices: Sequence[int],
) -> str:
    """Name what broke a step, task by task: a loss, a task's gradient at the features, or a parameter's gradient.

    The gradients of the tasks are computed again, one by one; the model's buffers and gradients are the worse for it.
    ``indices`` are the samples of the batch, to name those whose inputs are the cause.
    """
    finite = _samples(inputs)
    bad = [index for index, good in zip(indices, finite, strict=True) if not good] if finite else []
    cause = f" (the inputs of the samples {_few(bad)} are not finite)" if bad else ""
    losses = [f"the loss of {name} is {loss.item()}" for name, loss in result.losses.items() if not loss.isfinite()]
    if losses:
        return " and ".join(losses) + cause
    named = [name for name, parameter in engine.model.named_parameters() if not _finite(parameter.grad)]
    # With several processes not all of them have all tasks, and one would wait for what another does not run.
    rows = [] if is_distributed() else _rows_not_finite(engine, inputs, targets)
    if rows:
        return f"the gradient of {' and '.join(rows)} with respect to the features is not finite{cause}"
    return f"the gradient of {_few(named) or 'a parameter'} is not finite, though every loss is{cause}"


def _rows_not_finite(engine: Engine, inputs: Any, targets: Mapping[str, Any]) -> list[str]:
    guilty = []
    with torch.random.fork_rng():
        cut = Cut(engine.features(inputs))
        for task in present_tasks(engine.tasks, targets):
            loss = engine.loss(task, cut.features, targets[task.name])
            if loss.requires_grad:
                loss.backward()
            if not all(_finite(leaf.grad) for leaf in cut.leaves):
                guilty.append(task.name)
            for leaf in cut.leaves:
                leaf.grad = None
    return guilty


def _samples(inputs: Any) -> list[bool]:
    """For each sample of a batch, whether all of its numbers are finite."""
    answers = [
        leaf.detach().isfinite().flatten(1).all(1) if leaf.dim() > 1 else leaf.isfinite()
        for leaf in pytree.tree_leaves(inputs)
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dim()
    ]
    same = [answer for answer in answers if answer.shape == answers[0].shape]
    return torch.stack(same).all(0).tolist() if same else []


def _finite(gradient: Tensor | None) -> bool:
    return gradient is None or bool(gradient.isfinite().all())


def _few(items: Sequence[Any]) -> str:
    return ", ".join(map(str, items[:5])) + (" …" if len(items) > 5 else "")
