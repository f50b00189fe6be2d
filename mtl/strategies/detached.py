from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mtl.cut import Cut, Rows
from mtl.model import MultiTaskModel, Task, present_tasks
from mtl.strategies.result import StepResult
from mtl.weightings import Weighting, weight_of


class Detached(nn.Module):
    """Heads forward and backward one at a time on the detached features, then one backward of the trunk.

    The gradient is that of the sum of the scaled losses, while one head's graph is alive at a time: peak
    memory is O(V + d) and not O(K V + d) for K heads with V outputs. Source: Gloeckle et al. 2024, figure 2.
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
        rows = Rows() if measure and present else None
        cut = Cut(model.backbone(inputs), rows)
        if rows is not None:
            rows.start(len(present), cut.leaves)
        losses, weights = {}, {}
        for task in present:
            losses[task.name], weights[task.name] = self._head_step(model, task, cut, targets[task.name])
        cut.backward()
        if rows is None:
            return StepResult(losses, weights)
        return StepResult(losses, weights, gram=rows.gram(), space="features")

    def _head_step(self, model: MultiTaskModel, task: Task, cut: Cut, target: Any) -> tuple[Tensor, Tensor]:
        # A function of its own, so that nothing of this head's graph is referenced when the next one runs.
        loss = task.loss(model.heads[task.name](cut.features), target)
        weight = weight_of(self.weighting, task.name, loss)
        if loss.requires_grad:  # not where a head without parameters ignores the features
            loss.backward(weight)
        cut.land()
        return loss.detach(), weight
