"""A task's weight in one step: known when its head has run, or deferred until the losses of all tasks are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mtl.distributed.collectives import waits
from mtl.engine.engine import Engine
from mtl.engine.shares import label_shares
from mtl.model import MultiTaskModel
from mtl.tasks import Task, loss_modules
from mtl.weightings import Weighting, weight_of


class TaskWeights:
    """The weights that a weighting gives the tasks of one step.

    A weight is ``deferred`` when it depends on the losses of all tasks, or on a loss that is summed over ranks. Until
    then it is one.
    """

    def __init__(self, weighting: Weighting, loss_scale: float, is_distributed: bool) -> None:
        self._weighting, self._loss_scale, self._is_distributed = weighting, loss_scale, is_distributed
        self.deferred = weighting.needs_all_losses or (is_distributed and not weighting.affine)
        self._has_backward = not is_distributed  # whether the weighting's own parameters have their gradient

    def weight(self, task: str, loss: Tensor) -> Tensor:
        """A task's weight when its head has run."""
        if self.deferred:
            return torch.ones_like(loss)
        if self._is_distributed:
            return weight_of(self._weighting, task, loss, learn=False)
        return self._weigh(task, loss)

    def deferred_weights(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights from the losses of all tasks, summed over the ranks."""
        self._has_backward = True
        if self._weighting.needs_all_losses:
            return self._weighting.weights(losses)
        return {name: self._weigh(name, loss) for name, loss in losses.items()}

    def _weigh(self, task: str, loss: Tensor) -> Tensor:
        return weight_of(self._weighting, task, loss, loss_scale=self._loss_scale)

    def backward_parameters(self, losses: Mapping[str, Tensor]) -> None:
        """The gradient of the weighting's own parameters from the summed losses, where they have none yet."""
        if not self._has_backward and next(self._weighting.parameters(), None) is not None:
            self.deferred_weights(losses)


class DeferredGradients:
    """The gradients of the heads and losses of ``tasks``, kept back until the tasks' weights are known.

    It keeps one set of gradients a task: no more than their own ``.grad``, unless heads share parameters.
    """

    def __init__(self, model: MultiTaskModel, tasks: Sequence[Task]) -> None:
        losses = loss_modules(tasks)
        self._of_task = {
            t.name: [*model.heads[t.name].parameters(), *(losses[t.name].parameters() if t.name in losses else ())]
            for t in tasks
        }
        every = dict.fromkeys(p for parameters in self._of_task.values() for p in parameters)
        self._before = {p: p.grad for p in every}
        self._stashed: dict[str, list[tuple[nn.Parameter, Tensor]]] = {}
        for p in every:
            p.grad = None

    def keep(self, task: str) -> None:
        """Move the gradients of this task's head, whose weight is one, out of ``.grad`` to those from before."""
        for p in self._of_task[task]:
            before = self._before[p]
            if p.grad is not None:
                self._before[p] = p.grad if before is None else before.add_(p.grad)
                p.grad = None

    def stash(self, task: str) -> None:
        """Move the gradients that the backward of this task's head has left out of ``.grad``."""
        parameters = [p for p in self._of_task[task] if p.grad is not None]
        self._stashed[task] = [(p, p.grad) for p in parameters if p.grad is not None]
        for p in parameters:
            p.grad = None

    def apply(
        self,
        weights: Mapping[str, Tensor | float],
        others: Mapping[nn.Parameter, Mapping[str, float] | None] = MappingProxyType({}),
    ) -> None:
        """Add every head's gradients, times its task's weight, to those from before and from in between.

        ``others``: the parameters with other weights than those; where they are None, nothing is added.
        """
        for p, before in self._before.items():
            p.grad = before if p.grad is None else p.grad if before is None else before.add_(p.grad)
        for task, stashed in self._stashed.items():
            for p, gradient in stashed:
                own = others.get(p, weights)
                if own is not None:
                    gradient.mul_(own[task])
                    p.grad = gradient if p.grad is None else p.grad.add_(gradient)


def observe_after_update(engine: Engine, weighting: Weighting, inputs: Any, targets: Mapping[str, Any]) -> None:
    """Show a weighting that asks for it the losses of the same batch after the update.

    The extra forward pass runs as in training, with one head's output at a time, but leaves the running statistics of
    normalisation layers alone.
    """

    def run(module: nn.Module, values: Any) -> Any:
        return functional_call(module, {name: buffer.clone() for name, buffer in module.named_buffers()}, (values,))

    batch, heads, losses = label_shares(engine.tasks, inputs, targets, engine.reducer), engine.model.heads, {}
    with torch.no_grad(), engine.eager_unsharded(), engine.autocast():
        features = run(engine.model.backbone, inputs)
        for task in batch.tasks:
            share, loss = batch.shares[task.name], engine.zero_loss()
            if share:
                loss = task.loss(run(heads[task.name], features), targets[task.name]).to(loss)
            elif waits(heads[task.name]):
                run(heads[task.name], features)
            losses[task.name] = times(loss, share)
    weighting.observe_after_update(engine.reducer.sum_losses(losses))


def times(value: Tensor, factor: float) -> Tensor:
    """Their product, without a kernel where the factor is one."""
    return value if factor == 1 else value * factor
