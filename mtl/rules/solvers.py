"""Small exact solvers for rules and conflict metrics, in float64.

All work on the *correlation* matrix, the Gram matrix of the rows scaled to unit norm. Short rows are then as exact as
long ones, however far apart their norms are.
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

# Squared norms below this have lost digits to denormal numbers; such a row counts as zero.
SMALLEST_SQUARE = 1e-290
# Eigenvalues of the correlation matrix below this share of the largest are rounding errors of float64.
RANK_TOLERANCE = 1e-13
# Exact means: the optimality conditions hold to this tolerance, relative to the norms of the rows.
TOLERANCE = 1e-8


class SolverError(RuntimeError):
    """A solver did not reach the optimum. No solver returns an approximate answer."""


@cache
def _openblas() -> ThreadpoolController:
    return ThreadpoolController().select(internal_api="openblas")


def single_threaded() -> AbstractContextManager:
    """A context in which OpenBLAS, which NumPy and SciPy ship with, computes in the calling thread.

    Some of its routines wake all threads for the smallest matrix, and these spin for milliseconds: on two cores a step
    of ResNet-18 took 1.3 times as long with CAGrad, which itself takes 0.2 ms.
    """
    return _openblas().limit(limits=1)


class UnitRows(NamedTuple):
    """The nonzero rows, as their norms, their correlation matrix C and a factor F with ``F'F = C``."""

    alive: NDArray[np.bool_]  # [K], true for nonzero rows
    norms: Array  # [k]
    correlation: Array  # [k, k], positive semi-definite
    factor: Array  # [rank, k]; its columns are the unit rows in an orthonormal basis of their span

    def scatter(self, values: Array, zero: float = 0.0) -> Array:
        """Values of the k nonzero rows as values of all K rows; zero rows have the value ``zero``."""
        if len(values) == len(self.alive):
            return values
        full = np.full(len(self.alive), zero)
        full[self.alive] = values
        return full


def unit_rows(gram: Array) -> UnitRows:
    """The rows of a Gram matrix, scaled to unit norm.

    A correlation matrix that is indefinite by rounding errors, as in bf16, is replaced by its positive semi-definite
    part.
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


def nonnegative_least_squares(matrix: Array, right: Array) -> Array:
    """The exact ``argmin |A v - b|`` over ``v >= 0``, by the active set method of Lawson & Hanson 1974."""
    try:
        solution, _ = nnls(matrix, right, maxiter=50 * matrix.shape[1])
    except RuntimeError as error:
        raise SolverError(f"Non-negative least squares on {matrix.shape[1]} rows did not finish.") from error
    # Optimality: the gradient is zero where the solution is positive, and not negative elsewhere.
    gradient = matrix.T @ (matrix @ solution - right)
    gradient[solution == 0] = np.minimum(gradient[solution == 0], 0)
    norms = np.sqrt(np.einsum("rk,rk->k", matrix, matrix))
    violation = np.abs(gradient) / (norms * (np.sqrt(right @ right) + norms @ solution) + 1e-300)
    if not violation.max(initial=0) <= TOLERANCE:
        raise SolverError(f"Non-negative least squares missed the optimum by {violation.max():.1e}.")
    return solution


def least_distance(factor: Array, least: Array) -> Array | None:
    """The ``v >= 0`` of the shortest ``x = sum_i v_i u_i`` with ``<u_i, x> >= least_i``; None if there is no such x.

    ``factor`` ``[r, k]`` has the ``u_i`` as its columns. Problem LDP of Lawson & Hanson 1974, chapter 23, section 4.
    """
    system = np.concatenate([factor, least[None]])
    right = np.zeros(len(system))
    right[-1] = 1
    solution = nonnegative_least_squares(system, right)
    # With s the solution, the residual is (F s, h's - 1), and its last entry is minus its squared norm: zero if the
    # inequalities are infeasible. When small, the squared norm has more correct digits than the entry.
    residual = factor @ solution
    if np.linalg.norm(residual) <= 1e-10 * solution.sum():
        return None if solution.any() else solution
    return solution / (residual @ residual + (1 - least @ solution) ** 2)


def shortest_combination(rows: UnitRows) -> Array:
    """The weights of the shortest convex combination of nonzero ``rows``."""
    # In units of the smallest norm, so that both terms of |F v|^2 + (1 - inverse'v)^2 are of the order of one.
    inverse = rows.norms.min() / rows.norms
    right = np.zeros(len(rows.factor) + 1)
    right[-1] = 1
    weights = nonnegative_least_squares(np.concatenate([rows.factor, inverse[None]]), right) * inverse
    return weights / weights.sum()


def min_norm_weights(gram: Tensor) -> Tensor:
    """The weights of the shortest convex combination of the rows: ``argmin w' G w`` over the simplex.

    ``gram`` ``[K, K]`` -> ``[K]``, float64. A zero row is the shortest combination and has all the weight, shared with
    other zero rows. Source of the problem: Désidéri 2012; Sener & Koltun 2018, equation 3.

    Solved exactly as nonnegative least squares: with ``C = F'F`` the correlation matrix and ``a_i = min(n) / n_i``,
    minimise ``|F v|^2 + (1 - a'v)^2`` over ``v >= 0``. Then w is ``a v``, scaled to sum to one.
    """
    rows = unit_rows(gram.detach().to("cpu", torch.float64).numpy())
    zero = ~rows.alive
    return torch.from_numpy(zero / zero.sum() if zero.any() else shortest_combination(rows))


def dual_cone_multipliers(factor: Array, target: Array) -> Array:
    """The multipliers ``s >= 0`` of the projection of ``target`` onto the dual cone ``{x : <u_i, x> >= 0}``.

    The projection is ``target + sum_i s_i u_i``. ``factor`` ``[r, k]`` has the ``u_i`` as its columns; ``target`` is
    ``[r]``.
    """
    return nonnegative_least_squares(factor, -target)


def project_onto_simplex(values: Array, total: float = 1.0) -> Array:
    """The projection of ``values`` onto the nonnegative points with the sum ``total`` (Duchi et al. 2008, figure 1)."""
    ordered = np.sort(values)[::-1]
    excess = (ordered.cumsum() - total) / np.arange(1, len(values) + 1)
    return np.maximum(values - excess.max(), 0)
