from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mtl.errors import require
from mtl.rules.rows import KeptRows, RowRule, weighted_sum
from mtl.rules.rule import Array, TaskRule, task_indices


class ExcessMTL(RowRule, TaskRule):
    """Tasks get weight by how far they are from their own optimum, estimated from their gradients' history.

    S_k <- S_k + g_k^2, element by element; the excess risk e_k = sum g_k^2 / sqrt(S_k), relative to the
    first one of its task that was not zero; w_k <- w_k exp(``eta`` e_k), then scaled to sum to the number
    of tasks present. The direction is sum_k w_k g_k.

    A zero gradient has no excess risk: its weight falls behind. Sums and weights of absent tasks stay as
    they are. S needs rows whose elements mean the same in every batch.

    Source: He et al. 2024, "Robust multi-task learning with excess risks", equations 6, 7 and 9. The
    official code takes the first excess risks as they are, which lets the first step decide between tasks
    of different scales; here they are relative from the start.
    """

    def __init__(self, num_tasks: int, eta: float = 1.0) -> None:
        super().__init__(num_tasks)
        require("eta", eta, "above 0", 0 < eta < np.inf)
        self.eta = eta
        self.history = KeptRows(num_tasks)  # holds sqrt(S): squares of small gradients would leave float32's range
        self.first: Tensor
        self.logits: Tensor
        self.register_buffer("first", torch.zeros(num_tasks, dtype=torch.float64))
        self.register_buffer("logits", torch.zeros(num_tasks, dtype=torch.float64))

    def mix(self, rows: list[Tensor], gram: Array, present: Sequence[int] | None) -> tuple[list[Tensor], Tensor]:
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
        excess = torch.zeros(len(tasks), dtype=torch.float64)
        for kept, block in zip(self.history.take(rows, tasks), rows, strict=True):
            root = torch.hypot(kept, block.to(kept.dtype))
            share = block / root.where(root > 0, 1)  # at most one in size
            excess += (block * share).sum(1, dtype=torch.float64).cpu()
            roots.append(root)
        self.history.put(roots, tasks)
        return excess.numpy()
