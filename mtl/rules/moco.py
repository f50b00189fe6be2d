from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mtl.errors import require
from mtl.rules.rows import KeptRows, RowRule, gram_of, weighted_sum
from mtl.rules.rule import Array, TaskRule, task_indices
from mtl.rules.sdmgrad import share
from mtl.rules.solvers import onto_simplex


class MoCo(RowRule, TaskRule):
    """Running averages of the gradients, and weights that follow the shortest direction among them.

    y_k <- y_k - b_t (y_k - g_k), b_t = ``beta`` / t^``beta_sigma``; l <- P(l - c_t (Y Y' + ``rho`` I) l)
    with P the projection onto the simplex and c_t = ``gamma`` / t^``gamma_sigma``; the direction is sum_k
    l_k y_k. t counts the batches that a task was in.

    y_k starts at the first gradient of its task, l at equal weights. What is kept of absent tasks stays;
    the weights of those present move on their own and are put back with the sum that they had. A zero
    gradient draws weight, as in MGDA. The averages need rows whose elements mean the same in every batch.

    Source: Fernando et al. 2023, algorithm 1, without the projection of y onto a ball of unknown radius.
    LibMTL takes a softmax for the projection, which keeps the weights nearly equal, and scales gradients by
    loss over norm.
    """

    def __init__(
        self,
        num_tasks: int,
        beta: float = 0.5,
        beta_sigma: float = 0.5,
        gamma: float = 0.1,
        gamma_sigma: float = 0.5,
        rho: float = 0.0,
    ) -> None:
        super().__init__(num_tasks)
        require("beta", beta, "above 0 and at most 1", 0 < beta <= 1)
        require("gamma", gamma, "above 0", 0 < gamma < np.inf)
        for name, value in (("beta_sigma", beta_sigma), ("gamma_sigma", gamma_sigma), ("rho", rho)):
            require(name, value, "0 or more", 0 <= value < np.inf)
        self.beta, self.beta_sigma = beta, beta_sigma
        self.gamma, self.gamma_sigma, self.rho = gamma, gamma_sigma, rho
        self.average = KeptRows(num_tasks)
        self.weights: Tensor
        self.register_buffer("weights", torch.full((num_tasks,), 1 / num_tasks, dtype=torch.float64))

    def mix(self, rows: list[Tensor], gram: Array, present: Sequence[int] | None) -> tuple[list[Tensor], Tensor]:
        """Return the weighted sum of the averages, and the weights; update both."""
        tasks = task_indices(len(gram), self.num_tasks, present)
        times = self.average.counts[tasks] + 1.0
        averages = self.average.move_towards(rows, tasks, self.beta / times**self.beta_sigma)
        kept = self.weights.numpy()
        weights, total = share(kept, tasks)
        slope = gram_of(averages) @ weights + self.rho * weights
        weights = onto_simplex(weights - self.gamma / times**self.gamma_sigma * slope)
        kept[tasks] = total * weights
        return weighted_sum(averages, weights), torch.from_numpy(weights)
