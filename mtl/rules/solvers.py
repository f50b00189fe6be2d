"""Small exact solvers that rules and conflict metrics share; float64 throughout.

Every one works on the *correlation* matrix, the Gram matrix of the rows scaled to unit norm: what is known
of a short row is then as exact as what is known of a long one, however far their norms lie apart.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg.lapack import dsyevd
from scipy.optimize import nnls
from threadpoolctl import ThreadpoolController
from torch import Tensor

Array = NDArray[np.float64]

# Squares below this have lost digits to float64's smallest numbers: such a row counts as zero.
SMALLEST_SQUARE = 1e-290
# Eigenvalues of the correlation matrix below this share of the largest are rounding of float64.
RANK_TOLERANCE = 1e-13
# What "exact" means: the conditions of optimality hold to this, relative to the rows' norms.
TOLERANCE = 1e-8


class SolverError(RuntimeError):
    """A solver did not reach the optimum. It never returns an approximate answer instead."""


@cache
def _openblas() -> ThreadpoolController:
    return ThreadpoolController().select(internal_api="openblas")


def in_one_thread() -> AbstractContextManager:
    """Inside, OpenBLAS, which NumPy and SciPy come with, computes in the calling thread.

    Some of its routines wake all threads for the smallest matrix, and these stay awake for milliseconds: on two cores a
    step of ResNet-18 took 1.3 times as long with CAGrad, which itself takes 0.2 ms.
    """
    return _openblas().limit(limits=1)


class UnitRows(NamedTuple):
    """The rows that are not zero, as their norms, their correlation matrix C and a factor F with F'F = C."""

    alive: NDArray[np.bool_]  # [K], which rows are not zero
    norms: Array  # [k]
    correlation: Array  # [k, k], positive semi-definite
    factor: Array  # [rank, k]; its columns are the unit rows in an orthonormal basis of their span

    def spread(self, values: Array, zero: float = 0.0) -> Array:
        """Values of the k rows as values of all K tasks; the tasks with a zero row get ``zero``."""
        if len(values) == len(self.alive):
            return values
        full = np.full(len(self.alive), zero)
        full[self.alive] = values
        return full


def unit_rows(gram: Array) -> UnitRows:
    """Scale the rows behind a Gram matrix to unit norm.

    What rounding (of bf16, say) made indefinite is replaced by its positive semi-definite part.
    """
    squares = gram.diagonal()
    alive = squares > SMALLEST_SQUARE
    if not alive.all():
        gram, squares = gram[np.ix_(alive, alive)], squares[alive]
    norms = np.sqrt(squares)
    # Not divided by the product of two norms, which may leave float64's range.
    correlation = np.clip(gram / norms[:, None] / norms, -1, 1)
    if not len(norms):
        return UnitRows(alive, norms, correlation, correlation)
    eigenvalues, vectors, failed = dsyevd(correlation)
    if failed:
        raise SolverError(f"The eigenvalues of a correlation matrix of {len(norms)} rows were not found.")
    noise = RANK_TOLERANCE * len(norms) * eigenvalues[-1]
    first = int(eigenvalues.searchsorted(noise))
    factor = np.sqrt(eigenvalues[first:])[:, None] * vectors[:, first:].T
    if eigenvalues[0] < -noise:
        correlation = factor.T @ factor
    return UnitRows(alive, norms, correlation, factor)


def nonnegative(matrix: Array, right: Array) -> Array:
    """argmin_{v >= 0} |A v - b|, exactly, by the active set method of Lawson and Hanson 1974."""
    try:
        solution, _ = nnls(matrix, right, maxiter=50 * matrix.shape[1])
    except RuntimeError as error:
        raise SolverError(f"Non-negative least squares on {matrix.shape[1]} rows did not finish.") from error
    # The gradient has to be zero where the solution is positive and must not be negative elsewhere.
    gradient = matrix.T @ (matrix @ solution - right)
    gradient[solution == 0] = np.minimum(gradient[solution == 0], 0)
    norms = np.sqrt(np.einsum("rk,rk->k", matrix, matrix))
    violation = np.abs(gradient) / (norms * (np.sqrt(right @ right) + norms @ solution) + 1e-300)
    if not violation.max(initial=0) <= TOLERANCE:
        raise SolverError(f"Non-negative least squares missed the optimum by {violation.max():.1e}.")
    return solution


def least_distance(factor: Array, least: Array) -> Array | None:
    """The v >= 0 of argmin_x |x| such that u_i'x >= least_i, with x = sum v_i u_i. None where no x exists.

    ``factor`` [r, k] has the u_i as its columns. Problem LDP of Lawson and Hanson 1974, chapter 23, section
    4.
    """
    system = np.concatenate([factor, least[None]])
    right = np.zeros(len(system))
    right[-1] = 1
    solution = nonnegative(system, right)
    # The residual is (F u, h'u - 1), its last entry minus its square: zero where the inequalities contradict.
    # The square has the more digits when it is small.
    residual = factor @ solution
    if np.linalg.norm(residual) <= 1e-10 * solution.sum():
        return None if solution.any() else solution
    return solution / (residual @ residual + (1 - least @ solution) ** 2)


def shortest(rows: UnitRows) -> Array:
    """Weights on the simplex of the ``rows`` (none of them zero) that give the shortest direction."""
    # In units of the smallest norm: both terms of |F v|^2 + (1 - inverse'v)^2 then stay near one.
    inverse = rows.norms.min() / rows.norms
    right = np.zeros(len(rows.factor) + 1)
    right[-1] = 1
    weights = nonnegative(np.concatenate([rows.factor, inverse[None]]), right) * inverse
    return weights / weights.sum()


def min_norm_weights(gram: Tensor) -> Tensor:
    """The weights on the simplex that give the shortest direction: argmin_{w >= 0, sum w = 1} w' G w.

    ``gram`` [K, K] -> [K], float64. A zero row is itself the shortest direction and gets all the weight,
    shared with the other zero rows. Source of the problem: Désidéri 2012; Sener & Koltun 2018, equation 3.

    Solved exactly as non-negative least squares: with C = F'F the correlation matrix, minimise |F v|^2 + (1
    - a'v)^2 over v >= 0 with a_i = min n / n_i; its solution, times a and divided by its sum, is w.
    """
    rows = unit_rows(gram.detach().to("cpu", torch.float64).numpy())
    zero = ~rows.alive
    return torch.from_numpy(zero / zero.sum() if zero.any() else shortest(rows))


def onto_dual_cone(factor: Array, target: Array) -> Array:
    """The multipliers s >= 0 of argmin_x |x - target| such that u_i'x >= 0; x = target + sum s_i u_i.

    ``factor`` [r, k] has the u_i as its columns; ``target`` [r].
    """
    return nonnegative(factor, -target)


def onto_simplex(values: Array, total: float = 1.0) -> Array:
    """The nearest non-negative point to ``values`` with the sum ``total`` (Duchi et al. 2008, figure 1)."""
    ordered = np.sort(values)[::-1]
    excess = (ordered.cumsum() - total) / np.arange(1, len(values) + 1)
    return np.maximum(values - excess.max(), 0)
