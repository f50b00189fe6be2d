"""All heads of one step, in turn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from mtl.engine.chunks import ChunkedHead, chunk_shares
from mtl.engine.head_reduction import HeadReduction
from mtl.engine.heads import AbsentHead, Head
from mtl.engine.packed import PackedHeads, can_be_packed
from mtl.engine.weighting import DeferredGradients
from mtl.gradients.cut import Cut

if TYPE_CHECKING:
    from mtl.engine.step import Step


class HeadPass:
    """Iterate over it and call ``backward()`` of every head that it yields; then ``release()``, once.

    ``hold``: the heads' gradients are kept back until ``release`` says each task's weight by the rule. ``factors``
    multiply what a head sends into the trunk, where the rule's weights are known before.
    """

    def __init__(self, step: Step, cut: Cut, hold: bool, factors: Mapping[str, float] | None) -> None:
        self.step, self.cut, self.factors = step, cut, factors
        hold = hold or step.task_weights.deferred
        self.deferred = DeferredGradients(step.engine.model, step.tasks) if hold else None
        self.parts: dict[str, Tensor] = {}  # this rank's parts of the losses
        self._kind = step.engine.zero_loss().dtype  # of the parts, on every rank
        self._losses: dict[str, Tensor] | None = None

    def __iter__(self) -> Iterator[Head | PackedHeads]:
        step = self.step
        here = [task for task in step.tasks if step.shares[task.name]]
        whole = len(here) == len(step.tasks) and step.token_chunks == 1
        if whole and can_be_packed(step.engine.model, here, step.targets, self.cut.features):
            yield PackedHeads(self)
            return
        shares = {}
        if step.token_chunks > 1:
            shares = chunk_shares(here, step.targets, self.cut.positions, step.token_chunks)
        for task in step.tasks:
            if not step.shares[task.name]:
                yield AbsentHead(self, task)
            elif task.name in shares:
                yield ChunkedHead(self, task, shares[task.name])
            else:
                yield Head(self, task)

    def collect(self, task: str, loss: Tensor, weight: Tensor) -> None:
        """Keep a head's loss and weight after its backward, and its gradients at the features."""
        self.parts[task] = loss.to(self._kind)
        self.step.weights[task] = weight
        if self.deferred is not None:
            self.deferred.stash(task)
        self.cut.collect(1.0 if self.factors is None else self.factors[task])

    def losses(self) -> dict[str, Tensor]:
        """The losses of the whole batch, in one sum over the ranks; deferred weights are applied to the rows."""
        if self._losses is None:
            step = self.step
            self._losses = step.engine.reducer.sum_losses(self.parts)
            if step.task_weights.deferred:
                step.weights = step.task_weights.deferred_weights(self._losses)
                self.cut.reweigh([step.weights[name] for name in step.names])
        return self._losses

    def release(self, by_rule: Mapping[str, float] | None = None) -> None:
        """Give the heads their gradients, and start to sum them over the ranks."""
        step = self.step
        if step.task_weights.deferred:
            self.losses()
        if self.deferred is not None:
            weights: dict[str, Tensor | float] = dict.fromkeys(step.names, 1.0)
            if step.task_weights.deferred:
                weights = dict(step.weights)
            self.deferred.apply({n: w if by_rule is None else by_rule[n] * w for n, w in weights.items()})
        losses = self.parts if self._losses is None else {}  # they travel with the gradients, unless they are known
        step.losses = self._losses or {}
        step.reduction = HeadReduction(step.engine, step.tasks, losses)
