from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mtl.errors import require
from mtl.weightings.task_weighting import TaskWeighting, one_parameter_each


class UW(TaskWeighting):
    """Uncertainty weighting (UW): a log variance ``s_k`` is learned for each task.

    ``scaled loss = exp(-s_k) L_k / 2 + s_k / 2``, so the weight is ``w_k = exp(-s_k) / 2``.

    Scale: at the optimum ``exp(s_k) = L_k``, so every positive loss is scaled to 1/2, whatever its unit. A loss that
    stays at or below 0 has no optimum, and its weight grows without bound. ``initial`` is ``s_k`` at the start: 0, a
    variance of 1, as in the authors' example; LibMTL starts at -0.5. The ``s_k`` of an absent task has no gradient and
    does not change.

    The ``s_k`` are float32 parameters with the optimizer's settings for the heads, without their ``weight_decay``,
    which would pull the variances towards 1.

    Source: Kendall, Gal & Cipolla 2018, "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and
    Semantics", equation 7 with ``s = log sigma^2``. For classification the paper has no factor 1/2 (equation 10); here
    every task has it, as in common code.
    """

    affine = True

    def __init__(self, tasks: Sequence[str], initial: float = 0.0) -> None:
        super().__init__(tasks)
        require("initial", initial, "a finite number", math.isfinite(initial))
        self.log_variances = one_parameter_each(tasks, initial)

    def out_of_domain(self, task: str, loss: float) -> str | None:
        """A loss at or below 0."""
        return None if loss > 0 else "the weight of a loss that stays at or below 0 grows without bound"

    def forward(self, task: str, loss: Tensor) -> Tensor:
        """Return the scaled loss of one task, including the term ``s_k / 2``."""
        s = self.log_variances[self._index[task]]
        return 0.5 * torch.exp(-s) * loss + 0.5 * s
