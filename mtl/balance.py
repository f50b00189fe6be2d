"""Balancing in anybody's model and training loop: a layer between the trunk and the heads, and functions of losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mtl.conflict import conflict_metrics
from mtl.distributed.bounded import bounded_all_reduce
from mtl.distributed.collectives import get_world_size
from mtl.gradients.rows import Rows
from mtl.rules.call import RuleCall

Gradients = Sequence[Tensor | None]  # one task's at the leaves of the features; None where it does not depend on one


@dataclass(frozen=True)
class BalanceResult:
    """What one backward saw: the present ``tasks``, their ``gram`` ``[K, K]`` and the ``weights`` of their gradients.

    ``gram`` is float64 on the CPU, of all ranks' batches and without the loss scale; None between two runs of the rule.
    ``weights``: what each task's gradient was multiplied by on its way into the trunk, the scale included.
    """

    tasks: list[str]
    weights: dict[str, float]
    gram: Tensor | None

    @cached_property
    def conflict(self) -> dict[str, float]:
        """The conflict metrics, by a run's names; see :func:`mtl.conflict_metrics`."""
        return {} if self.gram is None else conflict_metrics(self.gram, self.tasks)

    @property
    def metrics(self) -> dict[str, float]:
        """The conflict metrics and ``weight/<task>``: what a tracker logs."""
        return self.conflict | {f"weight/{task}": weight for task, weight in self.weights.items()}


class Balance(nn.Module):
    """The identity, once for each task, whose backward sends ``scale * sum_i w_i g_i`` into the trunk."""

    def __init__(
        self,
        rule: nn.Module | None,
        tasks: Sequence[str],
        scale: float | str = 1.0,
        every: int = 1,
        loss_scale: Any = 1.0,
    ) -> None:
        super().__init__()
        self.tasks, self.loss_scale = list(tasks), loss_scale
        # No submodule: DistributedDataParallel and FSDP would move and broadcast its buffers, which are on the CPU.
        self._call = RuleCall(nn.Identity() if rule is None else rule, tasks, every, scale)
        self._measures_only = rule is None
        self._rows = Rows()
        self._log: Callable[[dict[str, float]], Any] | None = None
        self.last: BalanceResult | None = None

    @torch.compiler.disable
    def forward(self, features: Any) -> dict[str, Any]:
        """The features, once for each task."""
        leaves, structure = pytree.tree_flatten(features)
        where = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]
        if not (self.training and torch.is_grad_enabled() and where):
            return dict.fromkeys(self.tasks, features)
        views = iter(_Split.apply(self, *(leaves[i] for i in where)))
        split = {}
        for task in self.tasks:
            own = list(leaves)
            for i in where:
                own[i] = next(views)
            split[task] = pytree.tree_unflatten(own, structure)
        return split

    def log_to(self, log: Callable[[dict[str, float]], Any] | None) -> None:
        """Call ``log`` with ``last.metrics`` after every backward that has formed a Gram matrix."""
        self._log = log

    def direction(self, gradients: Sequence[Gradients]) -> list[Tensor | None]:
        """What goes into the trunk for the tasks' ``gradients`` ``[K][leaves]``, one tensor a leaf."""
        call, world = self._call, get_world_size()
        present = [any(g is not None for g in own) for own in gradients]
        everywhere = bounded_all_reduce(torch.tensor(present, dtype=torch.float64), self._place())
        names = [task for task, count in zip(self.tasks, everywhere.tolist(), strict=True) if count]
        if not call.is_due(names):
            factors = call.by_task(names, call.last(names))
            self.last = BalanceResult(names, factors, None)
            return _weighted_sum(gradients, [factors.get(task, 0.0) for task in self.tasks])
        reached = [i for i, column in enumerate(zip(*gradients, strict=True)) if any(g is not None for g in column)]
        like = [next(g for own in gradients if (g := own[i]) is not None) for i in reached]
        rows = self._rows.start(len(names), like)
        for task, own in zip(self.tasks, gradients, strict=True):
            if task in names:
                rows.append([own[i] for i in reached])
        factor = self._scale() * world
        gram = bounded_all_reduce(rows.gram(), self._place()) / factor**2
        weights = call.solve(gram, names, {})
        self.last = BalanceResult(names, call.by_task(names, weights), gram)
        if self._log is not None:
            self._log(self.last.metrics)
        found = iter(rows.combine(call.scale_for(names) * weights))
        return [
            next(found).to(like[reached.index(i)].dtype) if i in reached else None for i in range(len(gradients[0]))
        ]

    def _scale(self) -> float:
        return float(self.loss_scale.get_scale() if hasattr(self.loss_scale, "get_scale") else self.loss_scale)

    def _place(self) -> str:
        return f"The balance layer of {', '.join(self.tasks)}"


class _Split(torch.autograd.Function):
    """The features once for each task; autograd calls ``backward`` when every task's gradient is there."""

    @staticmethod
    def forward(ctx: Any, layer: Balance, *leaves: Tensor) -> tuple[Tensor, ...]:
        ctx.layer, ctx.count = layer, len(leaves)
        ctx.set_materialize_grads(False)  # a task that is not used is absent, not zero
        return tuple(leaf.view_as(leaf) for _ in layer.tasks for leaf in leaves)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        by_task = [gradients[i : i + ctx.count] for i in range(0, len(gradients), ctx.count)]
        return None, *ctx.layer.direction(by_task)


def _weighted_sum(gradients: Sequence[Gradients], weights: Sequence[float]) -> list[Tensor | None]:
    """The sum of the tasks' gradients at each leaf; from the last task to the first, as autograd adds them."""
    sums: list[Tensor | None] = [None] * len(gradients[0])
    for own, weight in zip(reversed(gradients), reversed(weights), strict=True):
        for i, gradient in enumerate(own):
            if gradient is not None:
                total = sums[i]
                scaled = gradient if weight == 1 else gradient * weight
                sums[i] = scaled if total is None else total + scaled
    return sums
