"""The exact solution of the equation that Nash-MTL and FairGrad share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dposv

from mtl.rules.solvers import SolverError, UnitRows, shortest_combination

Array = NDArray[np.float64]

# A direction shorter than this share of its summands is a cancellation: the point is Pareto-stationary.
STATIONARY = 1e-6


def fair_weights(rows: UnitRows, alpha: float, preference: Array | float = 1.0) -> Array:
    """The ``w > 0`` with ``(G w)_i = (q_i / w_i)^(1/alpha)``, for nonzero ``rows``; alpha = 1 and q = 1 is Nash-MTL's.

    q is the ``preference``. Let n be the norms in units of the largest, and ``w_i = b_i x_i / n_i`` with
    ``b_i = q_i^(1 / (1 + alpha)) n_i^((1 - alpha) / (1 + alpha))``, so that x = 1 is the solution for orthogonal rows.
    The equation is the stationarity condition of a strictly convex potential over x > 0, which damped Newton steps
    minimise::

        1/2 (b x)' C (b x) + sum_i b_i^2 p(x_i),   p'(x) = -x^(-1/alpha)

    The minimum exists, for dependent rows too, unless a nonnegative combination of the rows is zero. That is a
    Pareto-stationary point, at which no direction improves every task. The result is then this combination, with
    weights ``K z_i / n_i`` and z on the simplex; its direction is zero.
    """
    exponent = (1 - alpha) / (1 + alpha)
    unit = rows.norms.max()
    base = (rows.norms / unit) ** exponent * preference ** (1 / (1 + alpha))
    scaled = _newton(rows, base, 1 / alpha)
    if scaled is None or _is_stationary(rows, scaled):
        hull = shortest_combination(rows._replace(norms=np.ones_like(rows.norms)))
        if np.linalg.norm(rows.factor @ hull) <= 2 * STATIONARY:
            scaled = len(hull) * hull
    if scaled is None:
        raise SolverError(f"Newton's method did not solve G w = w^(-1/{alpha:g}) for {len(base)} tasks.")
    return scaled / rows.norms * unit**exponent


def _is_stationary(rows: UnitRows, scaled: Array) -> bool:
    """Whether the smallest gain ``<u_i, d>`` of a unit row is zero.

    This holds whenever a combination z of the unit rows is shorter than STATIONARY: the gains are positive, and their
    mean weighted by z is ``<sum_i z_i u_i, d>``.
    """
    direction = rows.factor @ scaled
    return bool((rows.factor.T @ direction).min() <= 2 * STATIONARY * np.linalg.norm(direction))


def _newton(rows: UnitRows, base: Array, power: float) -> Array | None:
    """The minimum ``y = b x``, to the last digits of float64; None if the iteration diverges."""
    x = np.ones_like(base)
    gradient, error = _gradient(rows.correlation, base, x, power)
    for _ in range(200):
        if error < 1e-14:
            return base * x
        hessian = rows.correlation.copy()
        hessian.flat[:: len(x) + 1] += power * x ** (-power - 1)
        _, step, failed = dposv(hessian, -gradient)
        if failed:
            return None
        move = _damped_step(step / (base * x), gradient * base * x, power)
        for _ in range(60):
            new = x * (1 + move)
            new_gradient, new_error = _gradient(rows.correlation, base, new, power)
            # The potential is convex, so a slope that has changed sign means that the step was too long. Very near the
            # minimum the slope is a rounding error, and only the error in the equation counts. For alpha above 1 the
            # curvature decreases so slowly that full steps are better (no failure in 700 random matrices up to 20).
            slopes = (gradient * base * x) @ move, (new_gradient * base * x) @ move
            if power < 1 or error < 1e-6 or new_error < 0.01 * error or slopes[1] <= -0.1 * slopes[0]:
                break
            move = move / 2
        if error < 1e-9 and new_error >= 0.5 * error:  # rounding errors allow no better
            return base * x
        x, gradient, error = new, new_gradient, new_error
        if x.max() > 1.5 and np.linalg.norm(rows.factor @ (base * x)) < STATIONARY * (base @ x):
            return None
    return None


def _damped_step(relative: Array, slopes: Array, power: float) -> Array:
    """Newton's step relative to x, changed so that x stays positive and the potential decreases."""
    if power < 1:
        # A large alpha needs some weights to become far smaller than others: they shrink by a factor per step, without
        # shortening the step of the others.
        move = np.where(relative > -0.5, relative, np.exp(relative.clip(-20, 0)) - 1)
        if slopes @ move < 0:
            return move
    return relative * min(1.0, 0.99 / max(-relative.min(), 1e-300))


def _gradient(correlation: Array, base: Array, x: Array, power: float) -> tuple[Array, float]:
    """The potential's gradient in ``y = b x``, and its largest entry relative to its summands."""
    image, bargain = correlation @ (base * x), base * x**-power
    # The last term is the rounding error of large weights that cancel.
    size = np.abs(image) + bargain + 1e-6 * (base @ x)
    return image - bargain, float(np.abs((image - bargain) / size).max())
