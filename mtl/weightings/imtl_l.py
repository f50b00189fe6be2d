from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtl.errors import require
from mtl.weightings.task_weighting import TaskWeighting


class IMTLL(TaskWeighting):
    """The loss balance of impartial multi-task learning (IMTL-L): a log scale s_k is learned for each task.

        scaled loss = e^{s_k} L_k - s_k

    Scale: w_k = e^{s_k}. At the optimum e^{-s_k} = L_k, so that every positive loss is scaled to 1; one that stays
    at or below 0 has no optimum and its weight grows without bound. ``initial`` is s_k at the start, 0 in the paper.
    An absent task's s_k gets no gradient and stays. Up to a factor of 2, and with -s_k for s_k, it is uncertainty
    weighting.

    The s_k are float32 parameters that the run's optimizer trains in the heads' parameter group. It should not decay
    them, because decay pulls the scales to 1, but it does with that group's ``weight_decay``: set
    ``optimizer.weight_decay=0`` to follow the paper.

    Source: Liu et al. 2021, "Towards Impartial Multi-Task Learning" (ICLR), section 3.2, with e as the base; the
    paper's whole method adds the rule IMTL-G.
    """

    affine = True

    def __init__(self, tasks: Sequence[str], initial: float = 0.0) -> None:
        super().__init__(tasks)
        require("initial", initial, "a finite number", math.isfinite(initial))
        # One parameter a task: an optimizer passes over those without a gradient, and not over entries of a vector.
        self.log_scales = nn.ParameterList(
            nn.Parameter(torch.tensor(float(initial), dtype=torch.float32)) for _ in tasks
        )

    def forward(self, task: str, loss: Tensor) -> Tensor:
        """Return the scaled loss of one task, with the term that s_k learns from."""
        s = self.log_scales[self._index[task]]
        return torch.exp(s) * loss - s
