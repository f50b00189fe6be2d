import math
from collections.abc import Mapping

import torch
from torch import Tensor

from mtl.errors import require
from mtl.weightings.task_weighting import stack
from mtl.weightings.weighting import WITHOUT_WEIGHT, Weighting


class GLS(Weighting):
    """The geometric loss strategy (GLS): the geometric mean of the losses replaces their sum.

    With K the number of tasks in the batch::

        L = (prod_i L_i)^(1/K),   w_k = dL / dL_k = L / (K L_k)

    Scale: ``sum_k w_k L_k = L``, the geometric mean, about 1/K of equal weighting. It is computed from the mean
    logarithm, so the product of many losses neither underflows nor overflows. A loss at or below ``epsilon`` counts as
    ``epsilon`` in the product and has weight 0.

    Source: Chennupati et al. 2019, "MultiNet++: Multi-Stream Feature Aggregation and Geometric Loss Strategy for
    Multi-Task Learning". LibMTL reports ``L_k / (K prod_i L_i)`` as the weight; here it is the derivative.
    """

    needs_all_losses = True

    def __init__(self, epsilon: float = 1e-8) -> None:
        super().__init__()
        require("epsilon", epsilon, "above 0", 0 < epsilon < math.inf)
        self.epsilon = epsilon

    def out_of_domain(self, task: str, loss: float) -> str | None:
        """A loss at or below ``epsilon``."""
        return None if loss > self.epsilon else WITHOUT_WEIGHT

    def weights(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the derivatives of the geometric mean with respect to the losses."""
        values = stack(losses.values())
        logs = values.clamp(min=self.epsilon).log()
        weights = torch.exp(logs.mean() - logs) / len(losses)
        weights = torch.where(values <= self.epsilon, 0, weights)
        return dict(zip(losses, weights.unbind(), strict=True))
