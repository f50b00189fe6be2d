import math

import torch
from torch import Tensor

from mtl.errors import require
from mtl.weightings.weighting import WITHOUT_WEIGHT, Weighting


class Log(Weighting):
    """The logarithm of every loss, so that the gradient does not depend on the unit of a loss.

    ``scaled loss = log max(L_k, epsilon)``

    Scale: ``w_k = 1 / L_k``, so ``w_k L_k = 1`` for every task. A loss at or below ``epsilon`` has weight 0, the
    derivative of this expression, because negative losses have no logarithm.

    Source: the baseline SI (scale-invariant), ``sum_k log L_k``, of Navon et al. 2022, "Multi-Task Learning as a
    Bargaining Game".
    """

    def __init__(self, epsilon: float = 1e-8) -> None:
        super().__init__()
        require("epsilon", epsilon, "above 0", 0 < epsilon < math.inf)
        self.epsilon = epsilon

    def out_of_domain(self, task: str, loss: float) -> str | None:
        """A loss at or below ``epsilon``."""
        return None if loss > self.epsilon else WITHOUT_WEIGHT

    def forward(self, task: str, loss: Tensor) -> Tensor:
        """Return the logarithm of ``loss``."""
        # where(), because the derivative of clamp() at the bound differs between versions of torch
        return torch.where(loss > self.epsilon, loss, self.epsilon).log()
