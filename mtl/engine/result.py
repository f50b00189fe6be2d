from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

Measured = Literal["features", "features_sum"]  # where a strategy without a rule can measure the task gradients


@dataclass
class AuditResult:
    """The Gram matrices of the audited ``tasks`` in both spaces, ``[k, k]``, float64 on the CPU.

    ``weights``: the rule's weights for each matrix, features first, if there is a rule and all tasks are audited.
    """

    tasks: list[str]
    features: Tensor | None = None
    parameters: Tensor | None = None
    weights: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class StepResult:
    """The result of one step, for the tasks with a label in the batch, in their order.

    ``losses``: each task's own loss, unweighted and detached. ``weights``: its weight, by the weighting and the rule.
    ``gram``: the Gram matrix ``[K, K]`` of the weighted task gradients, in float64 on the CPU, or None in a step that
    did not need it; ``space``: where it was measured; ``measured``: its tasks, where they are fewer than those of
    ``losses``. ``audit``: the check of feature space against parameter space, in a step that was asked for it.
    ``group_weights``: by group of the trunk's parameters and by task, the weights of a rule that runs in each.
    ``penalties``: by task, what its head was penalised for beside its loss; of several ranks, this one's part.
    """

    losses: dict[str, Tensor]
    weights: dict[str, Tensor]
    gram: Tensor | None = None
    space: str | None = None
    audit: AuditResult | None = None
    measured: list[str] | None = None
    penalties: dict[str, Tensor] = field(default_factory=dict)
    group_weights: dict[str, dict[str, float]] = field(default_factory=dict)
