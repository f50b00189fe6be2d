"""All heads of one step, in turn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from mtl.engine.chunks import ChunkedHead, chunk_shares
from mtl.engine.head import AbsentHead, Collector, Head
from mtl.engine.head_reduction import HeadReduction
from mtl.engine.packed import PackedHeads, can_be_packed
from mtl.engine.step import Step
from mtl.engine.weighting import DeferredGradients
from mtl.gradients.cut import Cut


class Heads:
    """The heads of a step on the cut features: iterate, call ``backward()`` of each, then ``release()`` once.

    ``hold``: the heads' own gradients are kept back until ``release`` says each task's weight by the rule. ``factors``
    multiply what a head sends into the trunk, where the rule's weights are known before.
    """

    def __init__(self, step: Step, cut: Cut, hold: bool = False, factors: Mapping[str, float] | None = None) -> None:
        self._step, self._cut = step, cut
        hold = hold or step.task_weights.deferred or bool(cut.parameters)
        deferred = DeferredGradients(step.engine.model, step.tasks) if hold else None
        self._collector = Collector(step, cut, deferred, factors)
        self._losses: dict[str, Tensor] | None = None

    def __iter__(self) -> Iterator[Head | PackedHeads]:
        step = self._step
        here = [task for task in step.tasks if step.shares[task.name]]
        whole = len(here) == len(step.tasks) and step.token_chunks == 1 and not self._cut.parameters
        if whole and can_be_packed(step.engine.model, here, step.targets, self._cut.features):
            yield PackedHeads(self._collector)
            return
        shares = {}
        if step.token_chunks > 1:
            shares = chunk_shares(here, step.targets, self._cut.positions, step.token_chunks)
        for task in step.tasks:
            if not step.shares[task.name]:
                yield AbsentHead(self._collector, task)
            elif task.name in shares:
                yield ChunkedHead(self._collector, task, shares[task.name])
            else:
                yield Head(self._collector, task)

    def losses(self) -> dict[str, Tensor]:
        """The losses of the whole batch, in one sum over the ranks; deferred weights are applied to the rows."""
        if self._losses is None:
            step = self._step
            self._losses = step.engine.reducer.sum_losses(self._collector.parts)
            if step.task_weights.deferred:
                step.weights = step.task_weights.deferred_weights(self._losses)
                self._cut.reweigh([step.weights[name] for name in step.names])
        return self._losses

    def release(self, by_rule: Mapping[str, float] | None = None) -> None:
        """Give the heads their gradients, and start to sum them over the ranks."""
        step, collector = self._step, self._collector
        if step.task_weights.deferred:
            self.losses()
        if collector.deferred is not None:
            weights: dict[str, Tensor | float] = dict.fromkeys(step.names, 1.0)
            if step.task_weights.deferred:
                weights = dict(step.weights)
            own = {n: w if by_rule is None else by_rule[n] * w for n, w in weights.items()}
            # The rule's direction has theirs, or its last weights do.
            collector.deferred.apply(own, dict.fromkeys(step.weighed_by_rule, collector.factors))
        losses = collector.parts if self._losses is None else {}  # they travel with the gradients, if still unknown
        step.losses = self._losses or {}
        step.reduction = HeadReduction(step.engine, step.tasks, losses, step.weighed_by_rule)
