"""One head, forward and backward on the cut features."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mtl.engine.step import Step
from mtl.engine.weighting import DeferredGradients, times
from mtl.gradients.cut import Cut
from mtl.tasks import Task


class Collector:
    """The losses and gradients that the heads of a step leave behind.

    ``deferred``: the heads' own gradients are kept back in it, where their weights are not known yet. ``factors``
    multiply each head's gradient at the features.
    """

    def __init__(
        self, step: Step, cut: Cut, deferred: DeferredGradients | None, factors: Mapping[str, float] | None
    ) -> None:
        self.step, self.cut, self.deferred, self.factors = step, cut, deferred, factors
        self.parts: dict[str, Tensor] = {}  # this rank's parts of the losses
        self._kind = step.engine.zero_loss().dtype  # of the parts, on every rank

    def penalise(self, task: str) -> None:
        """Backward of what the head's last forward pass is penalised for: with weight one, and in no task's row."""
        penalty = self.step.penalty(task)
        if penalty is not None:
            penalty.backward(torch.full_like(penalty, self.step.engine.precision.scale), retain_graph=True)
            if self.deferred is not None:
                self.deferred.keep(task)
            self.cut.collect_penalty()

    def collect(self, task: str, loss: Tensor, weight: Tensor) -> None:
        """Take a head's loss, weight and gradients after its backward."""
        self.parts[task], self.step.weights[task] = loss.to(self._kind), weight
        self.cut.collect(1.0 if self.factors is None else self.factors[task])
        if self.deferred is not None:
            self.deferred.stash(task)


class Head:
    """One task's head."""

    def __init__(self, collector: Collector, task: Task) -> None:
        self._collector, self._task = collector, task

    def backward(self) -> None:
        """``loss(head(d), y).backward()``, times the task's weight and this rank's share of its labels."""
        loss, weight = self._forward_backward(self._collector.step, self._collector.cut)
        self._collector.collect(self._task.name, loss, weight)

    def _forward_backward(self, step: Step, cut: Cut) -> tuple[Tensor, Tensor]:
        # A function of its own, so that nothing refers to this head's graph when the next head runs.
        name, share = self._task.name, step.shares[self._task.name]
        loss = step.engine.loss(self._task, cut.features, step.targets[name])
        self._collector.penalise(name)
        weight = step.task_weights.weight(name, loss)
        if loss.requires_grad:  # not where a head without parameters ignores the features
            loss.backward(times(weight, step.engine.precision.scale * share))
        # A copy: the storage of torch's mean squared error is as large as the tensor that it is the mean of.
        return times(loss.detach().clone(), share), weight


class AbsentHead(Head):
    """A head whose task has labels on other ranks only: it takes part in their collectives and learns nothing here."""

    def _forward_backward(self, step: Step, cut: Cut) -> tuple[Tensor, Tensor]:
        loss = step.engine.zero_head_loss(self._task, cut.features)
        self._collector.penalise(self._task.name)
        if loss is not None:
            loss.backward()
        loss = step.engine.zero_loss()
        return loss, step.task_weights.weight(self._task.name, loss)
