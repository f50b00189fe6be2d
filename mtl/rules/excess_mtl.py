from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mtl.errors import require
from mtl.rules.rows import RowRule, StoredRows, weighted_sum
from mtl.rules.rule import Array, TaskRule, task_indices


class ExcessMTL(RowRule, TaskRule):
    """Weights grow with the excess risk of a task: its distance to its optimum, estimated from past gradients.

    Elementwise ``S_k <- S_k + g_k^2``. The excess risk is ``e_k = sum g_k^2 / sqrt(S_k)``, divided by the task's first
    nonzero excess risk. ``w_k <- w_k exp(eta e_k)``, then scaled to sum to the number of present tasks. The direction
    is ``sum_k w_k g_k``.

    A zero gradient has no excess risk, so its relative weight decreases. Sums and weights of absent tasks do not
    change. S needs rows whose elements have the same meaning in every batch.

    Promises: noisy labels attract no weight: the part of a loss that cannot be learnt has no excess risk.

    Fails for: a large ``eta``: the weights are products of all steps so far, and one task can take all.

    Source: He et al. 2024, "Robust multi-task learning with excess risks", equations 6, 7 and 9. The official code does
    not normalise the excess risks of the first step, so that step favours tasks of large scale.
    """

    def __init__(self, num_tasks: int, eta: float = 1.0) -> None:
        super().__init__(num_tasks)
        require("eta", eta, "above 0", 0 < eta < np.inf)
        self.eta = eta
        self.history = StoredRows(num_tasks)  # sqrt(S), because squares of small gradients underflow in float32
        self.first: Tensor
        self.logits: Tensor
        self.register_buffer("first", torch.zeros(num_tasks, dtype=torch.float64, device="cpu"))
        self.register_buffer("logits", torch.zeros(num_tasks, dtype=torch.float64, device="cpu"))

    def aggregate(self, rows: list[Tensor], gram: Array, present: Sequence[int] | None) -> tuple[list[Tensor], Tensor]:
        """Return the weighted sum of the gradients, and the weights; update sums and weights."""
        tasks = task_indices(len(gram), self.num_tasks, present)
        excess = self._excess(rows, tasks)
        first, logits = self.first.numpy(), self.logits.numpy()
        first[tasks] = np.where(first[tasks] == 0, excess, first[tasks])
        relative = np.divide(excess, first[tasks], out=np.zeros(len(tasks)), where=first[tasks] > 0)
        logits[tasks] += self.eta * relative
        weights = np.exp(logits[tasks] - logits[tasks].max())
        weights *= len(tasks) / weights.sum()
        return weighted_sum(rows, weights), torch.from_numpy(weights)

    def _excess(self, rows: list[Tensor], tasks: np.ndarray) -> Array:
        roots = []
        excess = torch.zeros(len(tasks), dtype=torch.float64, device=rows[0].device)
        for stored, block in zip(self.history.gather(rows, tasks), rows, strict=True):
            root = torch.hypot(stored, block.to(stored.dtype))
            share = block / root.where(root > 0, 1)  # at most one in magnitude
            excess += (block * share).sum(1, dtype=torch.float64).to(excess.device)
            roots.append(root)
        self.history.store(roots, tasks)
        return excess.cpu().numpy()
