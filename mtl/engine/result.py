from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Measured = Literal["features", "features_sum"]  # where a strategy without a rule can measure the tasks' gradients


@dataclass
class AuditResult:
    """The Gram matrices of the audited ``tasks`` in both spaces, ``[k, k]``, float64 on the CPU.

    ``weights``: what the strategy's rule makes of each matrix, features first, if it has a rule and all tasks are
    audited.
    """

    tasks: list[str]
    features: Tensor | None = None
    parameters: Tensor | None = None
    weights: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class StepResult:
    """What one step of a strategy saw. Only the tasks with a label in the batch are in it, in their order.

    ``losses``: each task's own loss, unscaled and detached. ``weights``: what the weighting (and a rule)
    multiplied it by. ``gram``: the Gram matrix ``[K, K]`` of the tasks' scaled gradients, in float64 on the
    CPU, or None in a step that did not need it; ``space``: where it was measured; ``measured``: the tasks it is about,
    where they are not all that are in ``losses``. ``audit``: what the
    parameter-space check found, in a step that it was asked of.
    """

    losses: dict[str, Tensor]
    weights: dict[str, Tensor]
    gram: Tensor | None = None
    space: str | None = None
    audit: AuditResult | None = None
    measured: list[str] | None = None
