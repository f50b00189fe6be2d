from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtl.cut import Rows, as_seen_by_heads
from mtl.model import MultiTaskModel, Task, present_tasks
from mtl.strategies.result import StepResult
from mtl.weightings import Weighting, weight_of


class Naive(nn.Module):
    """The sum of the scaled losses and one backward: plain training, every head's graph alive at once.

    The baseline that the other strategies are compared with. Measuring costs a second backward through each
    head, down to the features, and none through the trunk.
    """

    def __init__(self, weighting: Weighting) -> None:
        super().__init__()
        self.weighting = weighting

    def step(
        self,
        model: MultiTaskModel,
        tasks: Sequence[Task],
        inputs: Any,
        targets: Mapping[str, Any],
        measure: bool = False,
    ) -> StepResult:
        """Leave the gradients of one batch in ``.grad``; see the package's docstring."""
        present = present_tasks(tasks, targets)
        features = model.backbone(inputs)
        if measure:
            features, leaves = as_seen_by_heads(features)
        losses = {t.name: t.loss(model.heads[t.name](features), targets[t.name]) for t in present}
        weights = {name: weight_of(self.weighting, name, loss) for name, loss in losses.items()}
        gram = _gram(leaves, losses, weights) if measure and present else None
        learning = [name for name, loss in losses.items() if loss.requires_grad]
        if learning:
            torch.autograd.backward([losses[name] for name in learning], [weights[name] for name in learning])
        detached = {name: loss.detach() for name, loss in losses.items()}
        return StepResult(detached, weights, gram, None if gram is None else "features")


def _gram(leaves: Sequence[Tensor], losses: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Tensor:
    rows = Rows().start(len(losses), leaves)
    for name, loss in losses.items():
        if loss.requires_grad:
            rows.append(torch.autograd.grad(loss, leaves, weights[name], retain_graph=True, allow_unused=True))
        else:
            rows.append([None] * len(leaves))
    return rows.gram()
