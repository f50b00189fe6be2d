import numpy as np

from mtl.rules.rule import Array, Rule
from mtl.rules.solvers import unit_rows


class IMTLG(Rule):
    """The direction with equal projections onto all task gradients; its weights sum to one.

    ``<d, g_k / |g_k|>`` is equal for all k, with ``d = sum_k a_k g_k`` and ``sum_k a_k = 1``. So ``a = C^+ 1 / n`` up
    to its scale, with C the correlation matrix and n the norms. Weights may be negative, as in the paper.

    If dependent gradients allow no such direction (1 is outside the range of C), the projections can only all be zero:
    the weights are the projection of 1 onto the kernel of C, divided by n, and the direction is zero. If the weights
    sum to zero, they are scaled so that their absolute values sum to one. A zero gradient has no direction and weight
    zero.

    Promises: equal projections onto all gradients.

    Fails for: gradients that are nearly dependent, with norms far apart: weights turn negative, and the common
    projection may be too, so that every task is hurt.

    Source: Liu et al. 2021, equation 6 (IMTL-G). The official code and LibMTL invert the paper's matrix, which gives
    infinities for zero or identical gradients.
    """

    def weigh(self, gram: Array) -> Array:
        """Return the weights, which sum to one."""
        rows = unit_rows(gram)
        if not len(rows.norms):
            return np.zeros(len(gram))
        coefficients, kernel = projections_onto(rows.factor, np.ones_like(rows.norms))
        if np.linalg.norm(kernel) > 1e-6 * np.sqrt(len(kernel)):
            coefficients = kernel
        weights = coefficients * (rows.norms.min() / rows.norms)
        total, size = weights.sum(), np.abs(weights).sum()
        return rows.scatter(weights / (total if abs(total) > 1e-12 * size else size))


def projections_onto(factor: Array, wanted: Array) -> tuple[Array, Array]:
    """``C^+ p`` and the projection of p, ``wanted``, onto the kernel of ``C = F'F``, with orthogonal rows of F."""
    eigenvalues = np.einsum("rk,rk->r", factor, factor)
    vectors = factor / np.sqrt(eigenvalues)[:, None]
    parts = vectors @ wanted
    return (parts / eigenvalues) @ vectors, wanted - parts @ vectors
