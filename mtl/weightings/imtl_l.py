from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mtl.errors import require
from mtl.weightings.task_weighting import TaskWeighting, one_parameter_each


class IMTLL(TaskWeighting):
    """Impartial multi-task learning, loss balance (IMTL-L): a log scale ``s_k`` is learned for each task.

    ``scaled loss = exp(s_k) L_k - s_k``, so the weight is ``w_k = exp(s_k)``.

    Scale: at the optimum ``exp(-s_k) = L_k``, so every positive loss is scaled to 1. A loss that stays at or below 0
    has no optimum, and its weight grows without bound. ``initial`` is ``s_k`` at the start, 0 in the paper. The ``s_k``
    of an absent task has no gradient and does not change. Up to a factor of 2 and the sign of ``s_k``, this is
    uncertainty weighting.

    The ``s_k`` are float32 parameters with the optimizer's settings for the heads, without their ``weight_decay``,
    which would pull the scales towards 1.

    Source: Liu et al. 2021, "Towards Impartial Multi-Task Learning" (ICLR), section 3.2, with base e. The paper's full
    method adds the rule IMTL-G.
    """

    affine = True

    def __init__(self, tasks: Sequence[str], initial: float = 0.0) -> None:
        super().__init__(tasks)
        require("initial", initial, "a finite number", math.isfinite(initial))
        self.log_scales = one_parameter_each(tasks, initial)

    def out_of_domain(self, task: str, loss: float) -> str | None:
        """A loss at or below 0."""
        return None if loss > 0 else "the weight of a loss that stays at or below 0 grows without bound"

    def forward(self, task: str, loss: Tensor) -> Tensor:
        """Return the scaled loss of one task, including the term ``-s_k``."""
        s = self.log_scales[self._index[task]]
        return torch.exp(s) * loss - s
