from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mtl.errors import require
from mtl.rules.rows import RowRule, StoredRows, gram_of, weighted_sum
from mtl.rules.rule import Array, TaskRule, task_indices
from mtl.rules.sdmgrad import normalised_weights
from mtl.rules.solvers import project_onto_simplex


class MoCo(RowRule, TaskRule):
    """Running averages of the task gradients, with weights that track their shortest convex combination.

    ``y_k <- y_k - b_t (y_k - g_k)`` with ``b_t = beta / t^beta_sigma``, then ``l <- P(l - c_t (Y Y' + rho I) l)`` with
    ``c_t = gamma / t^gamma_sigma`` and P the projection onto the simplex. The direction is ``sum_k l_k y_k``. The count
    t is per task: the number of batches with it.

    ``y_k`` starts at the task's first gradient, l at 1/K. The state of absent tasks does not change; the weights of the
    present tasks keep their sum. A zero gradient attracts weight, as in MGDA. The averages need rows whose elements
    have the same meaning in every batch.

    Promises: that of MGDA for averaged gradients, so that the noise of a batch does not bias the weights.

    Fails for: what MGDA fails for; and the averages lag behind when gradients change fast.

    Source: Fernando et al. 2023, algorithm 1, without the projection of y onto a ball of unknown radius. LibMTL
    replaces the projection by a softmax, which keeps the weights nearly equal, and scales the gradients by loss over
    norm.
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
        self.average = StoredRows(num_tasks)
        self.weights: Tensor
        self.register_buffer("weights", torch.full((num_tasks,), 1 / num_tasks, dtype=torch.float64, device="cpu"))

    def aggregate(self, rows: list[Tensor], gram: Array, present: Sequence[int] | None) -> tuple[list[Tensor], Tensor]:
        """Return the weighted sum of the averages, and the weights; update both."""
        tasks = task_indices(len(gram), self.num_tasks, present)
        times = self.average.counts[tasks] + 1.0
        averages = self.average.update_average(rows, tasks, self.beta / times**self.beta_sigma)
        stored = self.weights.numpy()
        weights, total = normalised_weights(stored, tasks)
        slope = gram_of(averages) @ weights + self.rho * weights
        weights = project_onto_simplex(weights - self.gamma / times**self.gamma_sigma * slope)
        stored[tasks] = total * weights
        return weighted_sum(averages, weights), torch.from_numpy(weights)
