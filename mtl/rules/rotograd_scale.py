import numpy as np
import torch
from torch import Tensor

from mtl.rules.rule import Array, Indices, TaskRule


class RotoGradScale(TaskRule):
    """The scaling half of RotoGrad: all task gradients are scaled to one norm, then summed.

    ``d = C sum_k g_k / |g_k|`` with ``C = sum_k a_k |g_k|``. The ``a_k`` are proportional to ``|g_k| / |g_k^0|`` and
    sum to one; ``g_k^0`` is the task's first nonzero gradient. So C is nearer to the norms of tasks that have improved
    less since their start. A zero gradient has no direction and weight zero. Absent tasks keep their ``g_k^0``.

    The other half of RotoGrad, a learned rotation of the features before each head, is no rule: ``strategy=rotograd``
    has both.

    Promises: all gradients are equally long.

    Fails for: a task that is done: its small gradient, mostly noise, is scaled up.

    Source: Javaloy & Valera 2022, equations 7 to 9.
    """

    def __init__(self, num_tasks: int) -> None:
        super().__init__(num_tasks)
        self.first_norms: Tensor
        self.register_buffer("first_norms", torch.zeros(num_tasks, dtype=torch.float64, device="cpu"))

    def weigh_tasks(self, gram: Array, tasks: Indices) -> Array:
        """Return the weights ``C / |g_k|``, and store first norms."""
        norms = np.sqrt(gram.diagonal().clip(0))
        stored = self.first_norms.numpy()
        stored[tasks] = np.where(stored[tasks] == 0, norms, stored[tasks])
        alive = norms > 0
        ratios = norms[alive] / stored[tasks][alive]
        weights = np.zeros(len(norms))
        if not alive.any():
            return weights
        weights[alive] = (ratios @ norms[alive]) / ratios.sum() / norms[alive]
        return weights
