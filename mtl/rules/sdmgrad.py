import numpy as np
import torch
from torch import Tensor

from mtl.errors import require
from mtl.rules.rule import Array, Indices, TaskRule
from mtl.rules.solvers import project_onto_simplex


class SDMGrad(TaskRule):
    """MGDA regularised towards the mean gradient, by a few projected gradient steps per call.

    Minimises ``|sum_i w_i g_i + lambda g_0|^2 / 2`` over the simplex, with ``g_0`` the mean of the task gradients. It
    starts at the weights of the last call and repeats ``iterations`` times: ``v <- momentum v + G (w + lambda / K)``,
    then ``w <- P(w - lr v)`` with P the projection onto the simplex. The direction is
    ``(sum_i w_i g_i + lambda g_0) / (1 + lambda)``. G is in units of the squared mean norm; v starts at zero.

    The paper draws independent batches for the two factors of G, which makes G unbiased. Here both factors are of the
    same batch, for a third of the cost: the diagonal includes the gradients' variance, so noisy tasks have less weight.

    The weights of the ``present`` tasks are solved for alone and keep their sum. A zero gradient attracts weight, as in
    MGDA.

    Promises: between MGDA and the mean gradient, by ``lamda``.

    Fails for: few tasks and little noise, where MGDA is exact for less; noisy tasks have less weight than they should.

    Source: Xiao et al. 2023, equation 5 and algorithm 1, with the defaults of the official code. That code also
    multiplies by K, clips to norm 1, and uses one batch three times instead of three batches.
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
        self.register_buffer("weights", torch.full((num_tasks,), 1 / num_tasks, dtype=torch.float64, device="cpu"))

    def weigh_tasks(self, gram: Array, tasks: Indices) -> Array:
        """Return the weights, which sum to one, and store the solution for the next call."""
        stored = self.weights.numpy()
        weights, total = normalised_weights(stored, tasks)
        norms = np.sqrt(gram.diagonal().clip(0))
        scale = norms.mean()
        if scale > 0:
            gram = gram / scale / scale
        velocity, share = np.zeros(len(tasks)), self.lamda / len(tasks)
        towards_mean = share * gram.sum(1)
        for _ in range(self.iterations):
            velocity = self.momentum * velocity + gram @ weights + towards_mean
            weights = project_onto_simplex(weights - self.lr * velocity)
        stored[tasks] = total * weights
        return (weights + share) / (1 + self.lamda)


def normalised_weights(stored: Array, tasks: Indices) -> tuple[Array, float]:
    """The stored weights of ``tasks``, scaled to sum to one (1/K if all are zero), and their original sum."""
    total = float(stored[tasks].sum())
    return (stored[tasks] / total if total > 0 else np.full(len(tasks), 1 / len(tasks))), total
