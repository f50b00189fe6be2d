import numpy as np

from mtl.rules.rule import Array, Rule
from mtl.rules.solvers import unit_rows


class IMTLG(Rule):
    """The direction whose projections onto all gradients are equal, with weights that sum to one.

    sum_k a_k = 1 and <d, g_k / |g_k|> equal for all k, d = sum_k a_k g_k: a = C^+ 1 / n up to its scale,
    with C the correlation matrix and n the norms. Weights may be negative, as in the paper.

    Where dependent gradients allow no such direction (1 is outside the range of C), all projections can be
    equal only at zero: the weights are the projection of 1 onto the kernel of C, over n, and the direction
    is zero. Where the paper's sum of the weights is zero, their absolute values are made to sum to one
    instead. A zero gradient has no direction to project onto and gets the weight zero.

    Source: Liu et al. 2021, equation 6 (IMTL-G). The official code and LibMTL invert the paper's matrix and
    give infinities for zero or identical gradients.
    """

    def weigh(self, gram: Array) -> Array:
        """Return the weights, of sum one."""
        rows = unit_rows(gram)
        if not len(rows.norms):
            return np.zeros(len(gram))
        coefficients, kernel = equal_projections(rows.factor)
        if np.linalg.norm(kernel) > 1e-6 * np.sqrt(len(kernel)):
            coefficients = kernel
        weights = coefficients * (rows.norms.min() / rows.norms)
        total, size = weights.sum(), np.abs(weights).sum()
        return rows.spread(weights / (total if abs(total) > 1e-12 * size else size))


def equal_projections(factor: Array) -> tuple[Array, Array]:
    """C^+ 1, and the part of 1 that lies in the kernel of C, for C = F'F with the rows of F orthogonal."""
    eigenvalues = np.einsum("rk,rk->r", factor, factor)
    vectors = factor / np.sqrt(eigenvalues)[:, None]
    parts = vectors.sum(1)
    return (parts / eigenvalues) @ vectors, 1 - parts @ vectors
