"""Small exact solvers that rules and conflict metrics share. Tensors in, tensors out, float64."""

from __future__ import annotations

import torch
from scipy.optimize import nnls
from torch import Tensor


class SolverError(RuntimeError):
    """A solver did not reach its accuracy. Nothing falls back to other weights in silence."""


def min_norm_weights(gram: Tensor) -> Tensor:
    """The weights on the simplex that give the shortest direction: argmin_{w >= 0, sum w = 1} w' G w.

    ``gram`` [K, K] -> [K], float64. A zero row is itself the shortest direction and gets all the weight,
    shared with the other zero rows. Source of the problem: Désidéri 2012; Sener & Koltun 2018, equation 3.

    Solved exactly as non-negative least squares: with G = F'F, minimise |Fv|^2 + (1'v - 1)^2 over v >= 0; its
    solution divided by its sum is w. The rows are scaled to unit norm first (F holds the factor of the
    correlation matrix), so norms that lie far apart do not hurt.
    """
    gram = gram.detach().double().cpu()
    norms = gram.diagonal().clamp(min=0).sqrt()
    zero = norms == 0
    if zero.any():
        return zero.double() / zero.sum()
    eigenvalues, vectors = torch.linalg.eigh(gram / norms.outer(norms))
    factor = eigenvalues.clamp(min=0).sqrt()[:, None] * vectors.T
    # v = w / norms in units of the smallest norm: both terms of the least squares then stay near one.
    inverse = norms.min() / norms
    system = torch.cat([factor, inverse[None]])
    right = torch.cat([torch.zeros(len(norms)).double(), torch.ones(1).double()])
    solution, _ = nnls(system.numpy(), right.numpy(), maxiter=30 * len(norms))
    weights = torch.from_numpy(solution) * inverse
    return weights / weights.sum()
