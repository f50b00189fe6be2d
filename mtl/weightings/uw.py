from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtl.errors import require
from mtl.weightings.task_weighting import TaskWeighting


class UW(TaskWeighting):
    """Uncertainty weighting (UW): a log variance s_k is learned for each task.

        scaled loss = L_k / (2 e^{s_k}) + s_k / 2

    Scale: w_k = e^{-s_k} / 2. At the optimum e^{s_k} = L_k, so that a positive loss counts as 1/2 whatever its unit;
    a loss that stays at or below 0 has no optimum and its weight grows without bound. ``initial`` is s_k at the
    start: 0, a variance of 1, as in the authors' example; LibMTL starts at -0.5. An absent task's s_k gets no
    gradient and stays.

    The s_k are float32 parameters that the run's optimizer trains in the heads' parameter group. It should not decay
    them, because decay pulls the variances to 1, but it does with that group's ``weight_decay``: set
    ``optimizer.weight_decay=0`` to follow the paper.

    Source: Kendall, Gal & Cipolla 2018, "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and
    Semantics", equation 7 with s = log sigma^2. The paper has no factor 1/2 on a classification's L (equation 10);
    here every task has the regression's, as in common code.
    """

    affine = True

    def __init__(self, tasks: Sequence[str], initial: float = 0.0) -> None:
        super().__init__(tasks)
        require("initial", initial, "a finite number", math.isfinite(initial))
        # One parameter a task: an optimizer passes over those without a gradient, and not over entries of a vector.
        self.log_variances = nn.ParameterList(
            nn.Parameter(torch.tensor(float(initial), dtype=torch.float32)) for _ in tasks
        )

    def forward(self, task: str, loss: Tensor) -> Tensor:
        """Return the scaled loss of one task, with the term that s_k learns from."""
        s = self.log_variances[self._index[task]]
        return 0.5 * torch.exp(-s) * loss + 0.5 * s
