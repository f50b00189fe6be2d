from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtl.cut import Rows, as_seen_by_heads
from mtl.model import MultiTaskModel, Task, present_tasks
from mtl.strategies.audit import Audit
from mtl.strategies.result import StepResult
from mtl.weightings import Weighting, weight_of


class Naive(nn.Module):
    """The sum of the scaled losses and one backward: plain training, every head's graph alive at once.

    The baseline that the other strategies are compared with. Measuring costs a second backward through each
    head, down to the features, and none through the trunk. ``token_chunks``, which the others take, must be 1.
    """

    def __init__(self, weighting: Weighting, token_chunks: int = 1) -> None:
        super().__init__()
        if token_chunks != 1:
            raise ValueError(
                f"token_chunks={token_chunks}: the naive strategy keeps every head's graph until its one backward, so "
                "that slices would save nothing; use strategy=detached or one with a rule, as strategy=mgda."
            )
        self.weighting = weighting
        self._audit = Audit()

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
        present = present_tasks(tasks, targets)
        measure = (measure or audit or self.weighting.needs_gram) and bool(present)
        features = model.backbone(inputs)
        leaves: list[Tensor] = []
        if measure:
            features, leaves = as_seen_by_heads(features)
        losses = {t.name: t.loss(model.heads[t.name](features), targets[t.name]) for t in present}
        detached = {name: loss.detach() for name, loss in losses.items()}
        if self.weighting.late:
            weights = self.weighting.weights(detached) if present else {}
        else:
            weights = {name: weight_of(self.weighting, name, loss) for name, loss in losses.items()}
        rows = _rows(leaves, losses, weights) if measure else None
        ones = torch.ones(len(losses), dtype=torch.float64)
        learning = [name for name, loss in losses.items() if loss.requires_grad]
        with self._audit.around(model, leaves, rows if audit else None, list(losses), ones) as found:
            if learning:
                torch.autograd.backward([losses[name] for name in learning], [weights[name] for name in learning])
        gram = None if rows is None else rows.gram()
        self.weighting.observe(detached, gram)
        return StepResult(detached, weights, gram, None if gram is None else "features", found)


def _rows(leaves: Sequence[Tensor], losses: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Rows:
    rows = Rows().start(len(losses), leaves)
    for name, loss in losses.items():
        if loss.requires_grad:
            rows.append(torch.autograd.grad(loss, leaves, weights[name], retain_graph=True, allow_unused=True))
        else:
            rows.append([None] * len(leaves))
    return rows
