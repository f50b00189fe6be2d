from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mtl.errors import require
from mtl.rules.rows import RowRule, StoredRows, weighted_sum
from mtl.rules.rule import Array, TaskRule, task_indices


class DBMTL(RowRule, TaskRule):
    """Running averages of the task gradients, scaled to the norm of the longest average, then summed.

    ``h_k <- b_t h_k + (1 - b_t) g_k`` with ``b_t = beta / t^sigma``, where t counts the batches with task k. The
    direction is ``sum_k a_k h_k`` with ``a_k = max_j |h_j| / |h_k|``. The paper's loss balancing, the logarithm of each
    loss, is a separate weighting here (``weighting=log``).

    ``h_k`` starts at the task's first gradient. A zero average has weight one. Averages of absent tasks do not change.
    The averages need rows whose elements have the same meaning in every batch.

    Promises: every averaged gradient has the norm of the longest one.

    Fails for: a task that is done: its small gradient is scaled up to the longest. Opposed averages cancel.

    Source: Lin et al. 2023, "Dual-balancing for multi-task learning", equations 3 and 4. The authors' code (LibMTL)
    starts the averages at zero without bias correction, so the first steps are ten times smaller.
    """

    def __init__(self, num_tasks: int, beta: float = 0.9, sigma: float = 0.0) -> None:
        super().__init__(num_tasks)
        require("beta", beta, "0 or more and below 1", 0 <= beta < 1)
        require("sigma", sigma, "0 or more", 0 <= sigma < np.inf)
        self.beta, self.sigma = beta, sigma
        self.average = StoredRows(num_tasks)

    def aggregate(self, rows: list[Tensor], gram: Array, present: Sequence[int] | None) -> tuple[list[Tensor], Tensor]:
        """Return the sum of the scaled averages, and their scales; update the averages."""
        tasks = task_indices(len(gram), self.num_tasks, present)
        decays = self.beta / (self.average.counts[tasks] + 1.0) ** self.sigma
        averages = self.average.update_average(rows, tasks, 1 - decays)
        squares = [torch.linalg.vector_norm(block, dim=1, dtype=torch.float64).square() for block in averages]
        norms = torch.stack([s.to(squares[0].device) for s in squares]).sum(0).cpu().sqrt()
        scales = torch.where(norms > 0, norms.max() / norms, 1)
        return weighted_sum(averages, scales), scales
