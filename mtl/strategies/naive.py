from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mtl.distributed.collectives import is_distributed
from mtl.engine.heads import zero_head_loss
from mtl.engine.result import Measured, StepResult
from mtl.engine.shares import LabelShares, label_shares
from mtl.engine.weighting import Weights
from mtl.gradients.cut import as_seen_by_heads
from mtl.gradients.rows import Rows
from mtl.model import MultiTaskModel
from mtl.strategies.audit import Audit
from mtl.tasks import Task
from mtl.weightings import Weighting


class Naive(nn.Module):
    """The sum of the scaled losses and one backward: plain training, every head's graph alive at once.

    The baseline that the other strategies are compared with. Measuring costs a second backward through each
    head, down to the features, and none through the trunk. ``token_chunks``, which the others take, must be 1.
    ``space``: where the tasks' gradients are measured, as in Detached.
    """

    def __init__(self, weighting: Weighting, token_chunks: int = 1, space: Measured = "features") -> None:
        super().__init__()
        if token_chunks != 1:
            raise ValueError(
                f"token_chunks={token_chunks}: the naive strategy keeps every head's graph until its one backward, so "
                "that slices would save nothing; use strategy=detached or one with a rule, as strategy=mgda."
            )
        self.weighting = weighting
        self.space, self._audit = space, Audit(space)

    def step(
        self,
        model: MultiTaskModel,
        tasks: Sequence[Task],
        inputs: Any,
        targets: Mapping[str, Any],
        measure: bool = False,
        audit: bool = False,
    ) -> StepResult:
        """Leave the gradients of one batch in ``.grad``; see the package's docstring."""
        shard = label_shares(tasks, inputs, targets)
        measure = (measure or audit or self.weighting.needs_gram) and bool(shard.tasks)
        features = model.features(inputs)
        trunk = [z for z in pytree.tree_leaves(features) if isinstance(z, Tensor) and z.requires_grad]
        leaves: list[Tensor] = []
        if measure:
            features, leaves = as_seen_by_heads(features)
        parts = _parts(model, shard, features, targets)
        zero = model.zero_loss()
        # Copies: a loss's storage may be as large as what it is the mean of, and would live as long as the result.
        losses = shard.whole({n: parts[n].detach().to(zero, copy=True) if n in parts else zero for n in shard.shares})
        weights = Weights(self.weighting, shard, model.loss_scale).after(losses) if losses else {}
        factors = {name: weights[name] * model.loss_scale for name in parts}
        rows = _rows(leaves, list(losses), parts, factors, model.loss_scale) if measure else None
        ones = torch.ones(len(losses), dtype=torch.float64)
        with self._audit.around(model, leaves, rows if audit else None, list(losses), ones) as found:
            outputs = [(loss, factors[name]) for name, loss in parts.items() if loss.requires_grad]
            if is_distributed():  # every process must pass through the whole trunk, or the others would wait
                outputs += [(z, torch.zeros_like(z)) for z in trunk]
            if outputs:
                torch.autograd.backward([output for output, _ in outputs], [vector for _, vector in outputs])
        shard.send(model).wait()
        gram = None if rows is None else rows.whole_gram(self.space)
        self.weighting.observe(losses, gram)
        return StepResult(losses, weights, gram, None if gram is None else self.space, found)


def _parts(model: MultiTaskModel, shard: LabelShares, features: Any, targets: Mapping[str, Any]) -> dict[str, Tensor]:
    """This process's parts of the losses: also of tasks without labels here whose heads the others wait for."""
    parts: dict[str, Tensor] = {}
    for task in shard.tasks:
        share = shard.shares[task.name]
        part = (
            model.loss(task, features, targets[task.name]) * share if share else zero_head_loss(model, task, features)
        )
        if part is not None:
            parts[task.name] = part
    return parts


def _rows(
    leaves: Sequence[Tensor],
    tasks: Sequence[str],
    parts: Mapping[str, Tensor],
    factors: Mapping[str, Tensor],
    loss_scale: float,
) -> Rows:
    rows = Rows().start(len(tasks), leaves)
    for name in tasks:
        gradients: Sequence[Tensor | None] = [None] * len(leaves)
        if name in parts and parts[name].requires_grad:
            gradients = torch.autograd.grad(parts[name], leaves, factors[name], retain_graph=True, allow_unused=True)
        rows.append(gradients, loss_scale)
    return rows
