from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from mtl.errors import require
from mtl.weightings.task_weighting import stack
from mtl.weightings.weighting import Weighting


class UWSO(Weighting):
    """Soft optimal uncertainty weighting (UW-SO): a softmax of the inverse losses.

    ``w_k = exp(1 / (T L_k)) / sum_j exp(1 / (T L_j))``, as constants: the loss inside is not differentiated.
    ``temperature`` T: towards 0 all weight goes to the smallest loss, towards infinity the weights are equal.

    Scale: ``sum_k w_k = 1``, 1/K of equal weighting. A loss at or below ``epsilon`` has no such inverse and weight 0.

    Source: Kirchdorfer et al. 2024, "Analytical Uncertainty-Based Loss Weighting in Multi-Task Learning". Without the
    softmax (UW-O) the weights are ``1 / L_k``: :class:`Log`.
    """

    needs_all_losses = True

    def __init__(self, temperature: float = 1.0, epsilon: float = 1e-8) -> None:
        super().__init__()
        require("temperature", temperature, "above 0", 0 < temperature < math.inf)
        require("epsilon", epsilon, "above 0", 0 < epsilon < math.inf)
        self.temperature, self.epsilon = temperature, epsilon

    def out_of_domain(self, task: str, loss: float) -> str | None:
        """A loss at or below ``epsilon``."""
        if loss > self.epsilon:
            return None
        return "a loss at or below 0 has no inverse here, so the task has weight 0 and is not trained"

    def weights(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the softmax of the inverse losses."""
        values = stack(losses.values())
        inside = values > self.epsilon
        exponents = torch.where(inside, 1 / (self.temperature * torch.where(inside, values, 1)), -torch.inf)
        weights = torch.where(inside.any(), exponents.softmax(0), 0)
        return dict(zip(losses, weights.unbind(), strict=True))
