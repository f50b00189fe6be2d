import numpy as np
import torch
from torch import Tensor

from mtl.errors import require
from mtl.rules.pcgrad import restrict_orders
from mtl.rules.rule import Array, Indices, Random, TaskRule, new_generator
from mtl.rules.solvers import unit_rows

# Distance of target cosines from -1 and 1, where the correction is undefined.
MARGIN = 1e-8


class GradVac(Random, TaskRule):
    """Rotate each task gradient until its cosine with each other one reaches a running average; then sum.

    For every task i, start with ``h_i = g_i`` and visit the other tasks j in random order. Let ``c = cos(h_i, g_j)``
    and ``t = t_ij``, a running average over the steps that starts at 0. If c < t::

        h_i <- h_i + |h_i| (t sqrt(1 - c^2) - c sqrt(1 - t^2)) / (|g_j| sqrt(1 - t^2)) g_j

    In any case ``t_ij <- (1 - beta) t_ij + beta c``. The direction is ``sum_i h_i``; for t = 0 it is PCGrad's.

    A zero gradient has no cosine: its weight is one, its averages do not change, and it rotates no other gradient. The
    averages of absent tasks do not change.

    Promises: the cosines are brought up to their running averages.

    Fails for: more than two tasks, where a later turn undoes an earlier one and a task may be hurt.

    Source: Wang et al. 2021, equation 4 and algorithm 1, on whole gradients and not per layer. The default of ``beta``
    is the paper's 0.01; LibMTL and TorchJD have 0.5.
    """

    def __init__(self, num_tasks: int, beta: float = 0.01, seed: int = 0) -> None:
        super().__init__(num_tasks)
        require("beta", beta, "above 0 and at most 1", 0 < beta <= 1)
        self.beta = beta
        self.generator = new_generator(seed)
        self.targets: Tensor
        self.register_buffer("targets", torch.zeros(num_tasks, num_tasks, dtype=torch.float64, device="cpu"))

    def weigh_tasks(self, gram: Array, tasks: Indices) -> Array:
        """Return the weights of the summed direction, and update the averages."""
        rows = unit_rows(gram)
        orders = restrict_orders(rows.alive, self.orders(len(gram)))
        pairs = np.ix_(tasks[rows.alive], tasks[rows.alive])
        targets = self.targets.numpy()[pairs]
        combined = self._rotate(rows.correlation, orders, targets)
        self.targets.numpy()[pairs] = targets
        return rows.scatter(rows.norms @ combined / rows.norms, zero=1.0)

    def _rotate(self, correlation: Array, orders: Indices, targets: Array) -> Array:
        """The rotated unit rows as combinations of unit rows; ``targets`` is updated in place."""
        own = np.arange(len(correlation))
        combined, images = np.eye(len(own)), correlation.copy()  # images: combined @ correlation
        for others in orders.T:
            lengths = np.sqrt(np.maximum(np.einsum("ik,ik->i", combined, images), 0))
            # A row that has cancelled to a rounding error has no direction and no cosine.
            seen = lengths > 1e-7 * np.abs(combined).sum(1)
            cosines = np.divide(images[own, others], lengths, out=np.zeros(len(own)), where=seen).clip(-1, 1)
            goals = targets[own, others].clip(MARGIN - 1, 1 - MARGIN)
            sines = np.sqrt(1 - cosines**2)
            gains = lengths * (goals * sines / np.sqrt(1 - goals**2) - cosines)
            gains[~seen | (cosines >= goals)] = 0
            combined[own, others] += gains
            images += gains[:, None] * correlation[others]
            updated = (1 - self.beta) * targets[own, others] + self.beta * cosines
            targets[own, others] = np.where(seen, updated, targets[own, others])
        return combined
