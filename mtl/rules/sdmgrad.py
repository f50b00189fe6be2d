import numpy as np
import torch
from torch import Tensor

from mtl.errors import require
from mtl.rules.rule import Array, Indices, TaskRule
from mtl.rules.solvers import onto_simplex


class SDMGrad(TaskRule):
    """The shortest direction near the mean, approached by a few steps of projected gradient descent a call.

    Minimises |sum w_i g_i + lambda g_0|^2 / 2 over the simplex, g_0 the mean gradient, from the weights of
    the last call: ``iterations`` times w <- P(w - lr velocity), velocity <- momentum velocity + G (w +
    lambda/K). The direction is (sum w_i g_i + lambda g_0) / (1 + lambda). G is taken in units of the
    squared mean norm; the velocity starts at zero in every call.

    The paper draws independent batches for the two factors of G, so that its expectation is that of the
    true gradients' Gram matrix. Here both are the same batch, one third of the cost: the diagonal then also
    holds the gradients' variance, which leans the weights away from noisy tasks.

    ``present``: the weights of these tasks are solved for on their own and put back with the sum that they
    had. A zero gradient draws weight, as in MGDA.

    Source: Xiao et al. 2023, equation 5 and algorithm 1; the defaults are the official code's. That code also
    multiplies by K, clips to the norm 1 and holds one batch three times where it means three.
    """

    def __init__(
        self,
        num_tasks: int,
        lamda: float = 0.3,
        lr: float = 10.0,
        momentum: float = 0.5,
        iterations: int = 20,
    ) -> None:
        super().__init__(num_tasks)
        require("lamda", lamda, "0 or more", 0 <= lamda < np.inf)
        require("lr", lr, "above 0", 0 < lr < np.inf)
        require("momentum", momentum, "0 or more and below 1", 0 <= momentum < 1)
        require("iterations", iterations, "1 or more", iterations >= 1)
        self.lamda, self.lr, self.momentum, self.iterations = lamda, lr, momentum, iterations
        self.weights: Tensor
        self.register_buffer("weights", torch.full((num_tasks,), 1 / num_tasks, dtype=torch.float64))

    def weigh_tasks(self, gram: Array, tasks: Indices) -> Array:
        """Return the weights, of sum one, and keep them for the next call."""
        kept = self.weights.numpy()
        weights, total = share(kept, tasks)
        norms = np.sqrt(gram.diagonal().clip(0))
        scale = norms.mean()
        if scale > 0:
            gram = gram / scale / scale
        velocity, pull = np.zeros(len(tasks)), self.lamda / len(tasks)
        towards_mean = pull * gram.sum(1)
        for _ in range(self.iterations):
            velocity = self.momentum * velocity + gram @ weights + towards_mean
            weights = onto_simplex(weights - self.lr * velocity)
        kept[tasks] = total * weights
        return (weights + pull) / (1 + self.lamda)


def share(kept: Array, tasks: Indices) -> tuple[Array, float]:
    """The kept weights of ``tasks``, made to sum to one (equal if all are zero), and their sum."""
    total = float(kept[tasks].sum())
    return (kept[tasks] / total if total > 0 else np.full(len(tasks), 1 / len(tasks))), total
