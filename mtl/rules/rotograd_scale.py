import numpy as np
import torch
from torch import Tensor

from mtl.rules.rule import Array, Indices, TaskRule


class RotoGradScale(TaskRule):
    """The half of RotoGrad that equalises norms: every gradient gets the same length, the sum is taken.

    d = C sum_k g_k / |g_k|, C = sum_k a_k |g_k|, a_k the share of |g_k| / |g_k^0| in their sum, g_k^0 the
    first gradient of the task that was not zero. A task that has progressed less than the others since its
    start pulls C towards its own norm. A zero gradient has no direction and gets the weight zero; absent
    tasks keep their g_k^0.

    The other half, a learned rotation of the features before each head, is not a rule on gradients and not
    here.

    Source: Javaloy & Valera 2022, equations 7 to 9.
    """

    def __init__(self, num_tasks: int) -> None:
        super().__init__(num_tasks)
        self.first_norms: Tensor
        self.register_buffer("first_norms", torch.zeros(num_tasks, dtype=torch.float64))

    def weigh_tasks(self, gram: Array, tasks: Indices) -> Array:
        """Return C / |g_k|, and keep first norms."""
        norms = np.sqrt(gram.diagonal().clip(0))
        kept = self.first_norms.numpy()
        kept[tasks] = np.where(kept[tasks] == 0, norms, kept[tasks])
        alive = norms > 0
        ratios = norms[alive] / kept[tasks][alive]
        weights = np.zeros(len(norms))
        if not alive.any():
            return weights
        weights[alive] = (ratios @ norms[alive]) / ratios.sum() / norms[alive]
        return weights
