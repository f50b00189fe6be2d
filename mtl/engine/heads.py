"""One head, forward and backward on the cut features."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from mtl.distributed.sharding import is_sharded
from mtl.distributed.sync_batchnorm import waits
from mtl.engine.weighting import times
from mtl.gradients.cut import Cut
from mtl.tasks import Task

if TYPE_CHECKING:
    from mtl.engine.engine import Engine
    from mtl.engine.head_pass import HeadPass
    from mtl.engine.step import Step


class Head:
    """One task's head."""

    def __init__(self, heads: HeadPass, task: Task) -> None:
        self.heads, self.task = heads, task

    def backward(self) -> None:
        """``loss(head(d), y).backward()``, times the task's weight and this rank's share of its labels."""
        loss, weight = self._forward_backward(self.heads.step, self.heads.cut)
        self.heads.collect(self.task.name, loss, weight)

    def _forward_backward(self, step: Step, cut: Cut) -> tuple[Tensor, Tensor]:
        # A function of its own, so that nothing refers to this head's graph when the next head runs.
        name, share = self.task.name, step.shares[self.task.name]
        loss = step.engine.loss(self.task, cut.features, step.targets[name])
        weight = step.task_weights.weight(name, loss)
        if loss.requires_grad:  # not where a head without parameters ignores the features
            loss.backward(times(weight, step.engine.precision.scale * share))
        # A copy: the storage of torch's mean squared error is as large as the tensor that it is the mean of.
        return times(loss.detach().clone(), share), weight


class AbsentHead(Head):
    """A head whose task has labels on other ranks only: it takes part in their collectives and learns nothing here."""

    def _forward_backward(self, step: Step, cut: Cut) -> tuple[Tensor, Tensor]:
        loss = zero_head_loss(step.engine, self.task, cut.features)
        if loss is not None:
            loss.backward()
        loss = step.engine.zero_loss()
        return loss, step.task_weights.weight(self.task.name, loss)


def zero_head_loss(engine: Engine, task: Task, features: Any) -> Tensor | None:
    """A zero loss connected to the head's output, so that its collectives run on this rank; None if it has none."""
    head = engine.model.heads[task.name]
    if not (waits(head) or is_sharded(*head.parameters())):
        return None
    outputs = [output for output in pytree.tree_leaves(engine.predict(task.name, features)) if output.requires_grad]
    return torch.stack([output.flatten()[:0].sum() for output in outputs]).sum()
