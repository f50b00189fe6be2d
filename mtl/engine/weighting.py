"""A task's weight: known when its head has run, or deferred until all losses are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mtl.distributed.collectives import is_distributed
from mtl.distributed.sync_batchnorm import waits
from mtl.engine.shares import LabelShares, label_shares
from mtl.model import MultiTaskModel
from mtl.tasks import Task, loss_modules
from mtl.weightings import Weighting, weight_of


class Weights:
    """How a weighting's weights come about in one step.

    Most are known from the task's own loss when its head has run. Where only the whole batch's loss tells, because the
    weighting needs all tasks' first or, with several processes, because its weights depend on the loss that each has
    only a part of, they are ``late``: one until ``after`` says them.
    """

    def __init__(self, weighting: Weighting, shard: LabelShares, loss_scale: float) -> None:
        self._weighting, self._loss_scale = weighting, loss_scale
        self._apart = is_distributed()
        self.late = bool(shard.tasks) and (weighting.needs_all_losses or (self._apart and not weighting.affine))

    def now(self, task: str, loss: Tensor) -> Tensor:
        """A task's weight when its head has run."""
        if self.late:
            return torch.ones_like(loss)
        if self._apart:
            return weight_of(self._weighting, task, loss, learn=False)
        return weight_of(self._weighting, task, loss, loss_scale=self._loss_scale)

    def after(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The late weights, from the whole losses of all tasks."""
        if self._weighting.needs_all_losses:
            return self._weighting.weights(losses)
        return {
            task: weight_of(self._weighting, task, loss, loss_scale=self._loss_scale) for task, loss in losses.items()
        }

    def learn(self, losses: Mapping[str, Tensor]) -> None:
        """Let what the weighting learns have its gradient from the whole losses, where it has none yet."""
        if self._apart and not self.late and next(self._weighting.parameters(), None) is not None:
            self.after(losses)


class DeferredGradients:
    """The heads' gradients, held back until their tasks' weights are known.

    One set of gradients a task (its head's and its loss's) is kept, which is no more than their own ``.grad`` unless
    heads share parameters.
    """

    def __init__(self, model: MultiTaskModel, tasks: Sequence[Task]) -> None:
        losses = loss_modules(tasks)
        self._of_task = {
            t.name: [*model.heads[t.name].parameters(), *(losses[t.name].parameters() if t.name in losses else ())]
            for t in tasks
        }
        every = dict.fromkeys(p for parameters in self._of_task.values() for p in parameters)
        self._before = [(p, p.grad) for p in every]
        self._held: dict[str, list[tuple[nn.Parameter, Tensor]]] = {}
        for p, _ in self._before:
            p.grad = None

    def take(self, task: str) -> None:
        """Take away what the backward of this task's head has left."""
        parameters = [p for p in self._of_task[task] if p.grad is not None]
        self._held[task] = [(p, p.grad) for p in parameters if p.grad is not None]
        for p in parameters:
            p.grad = None

    def release(self, weights: Mapping[str, Tensor | float]) -> None:
        """Add every head's gradients, times its task's weight, to what was there before and came in between."""
        for p, before in self._before:
            p.grad = before if p.grad is None else p.grad if before is None else before.add_(p.grad)
        for task, held in self._held.items():
            for p, gradient in held:
                gradient.mul_(weights[task])
                p.grad = gradient if p.grad is None else p.grad.add_(gradient)


def observe_after_update(
    weighting: Weighting, model: MultiTaskModel, tasks: Sequence[Task], inputs: Any, targets: Mapping[str, Any]
) -> None:
    """Show a weighting that asks for it the same batch's losses after the update.

    The extra forward pass runs as in training, with one head's output at a time, but leaves the running statistics of
    normalisation layers alone.
    """

    def run(module: nn.Module, values: Any) -> Any:
        return functional_call(module, {name: buffer.clone() for name, buffer in module.named_buffers()}, (values,))

    with torch.no_grad(), model.eager_unsharded():
        shard = label_shares(tasks, inputs, targets)
        with model.autocast():
            features = run(model.backbone, inputs)
        losses = {}
        for task in shard.tasks:
            share, loss = shard.shares[task.name], model.zero_loss()
            if share:
                with model.autocast():
                    loss = task.loss(run(model.heads[task.name], features), targets[task.name]).to(loss)
            elif waits(model.heads[task.name]):
                with model.autocast():
                    run(model.heads[task.name], features)
            losses[task.name] = times(loss, share)
        weighting.observe_after_update(shard.whole(losses))


def times(value: Tensor, factor: float) -> Tensor:
    """Their product, without a kernel where the factor is one."""
    return value if factor == 1 else value * factor
