"""The equation that Nash-MTL and FairGrad share, solved exactly."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dposv

from mtl.rules.solvers import SolverError, UnitRows, shortest

Array = NDArray[np.float64]

# A direction shorter than this share of what it is summed from is cancellation: no agreement exists.
STATIONARY = 1e-6


def fair_weights(rows: UnitRows, alpha: float) -> Array:
    """The w > 0 with (G w)_i = w_i^(-1/alpha), for ``rows`` that are not zero; alpha = 1 is Nash's equation.

    With n the norms in units of the largest and w_i = b_i x_i / n_i, b_i = n_i^((1 - alpha) / (1 + alpha))
    (x = 1 solves it for orthogonal rows), it is the stationarity of a strictly convex potential over x > 0,

        1/2 (b x)'C (b x) + sum_i b_i^2 p(x_i),   p'(x) = -x^(-1/alpha),

    which damped Newton steps minimise. The minimum exists, also for dependent rows, unless some non-negative
    combination of the rows is zero: a Pareto-stationary point, where no direction helps every task. There the
    answer is that combination, with weights K z_i / n_i (z on the simplex): its direction is zero.
    """
    exponent = (1 - alpha) / (1 + alpha)
    unit = rows.norms.max()
    base = (rows.norms / unit) ** exponent
    scaled = _newton(rows, base, 1 / alpha)
    if scaled is None or _gains_nothing(rows, scaled):
        hull = shortest(rows._replace(norms=np.ones_like(rows.norms)))
        if np.linalg.norm(rows.factor @ hull) <= 2 * STATIONARY:
            scaled = len(hull) * hull
    if scaled is None:
        raise SolverError(f"Newton's method did not solve G w = w^(-1/{alpha:g}) for {len(base)} tasks.")
    return scaled / rows.norms * unit**exponent


def _gains_nothing(rows: UnitRows, scaled: Array) -> bool:
    """Whether some unit row gains nothing.

    So it is wherever a combination z of them is shorter than STATIONARY: every <u_i, d> is positive, and
    their mean by z is <sum_i z_i u_i, d>.
    """
    direction = rows.factor @ scaled
    return bool((rows.factor.T @ direction).min() <= 2 * STATIONARY * np.linalg.norm(direction))


def _newton(rows: UnitRows, base: Array, power: float) -> Array | None:
    """The y = b x at the minimum, to the last digits of float64. None where it runs away to infinity."""
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
        move = _inside(step / (base * x), gradient * base * x, power)
        for _ in range(60):
            new = x * (1 + move)
            new_gradient, new_error = _gradient(rows.correlation, base, new, power)
            # The potential is convex: a slope that has turned upwards says that the step was too long. Very near
            # the minimum the slope is rounding, and the error tells. With alpha above 1 the curvature falls off so
            # slowly that full moves serve better (no failure in 700 random matrices up to alpha = 20).
            slopes = (gradient * base * x) @ move, (new_gradient * base * x) @ move
            if power < 1 or error < 1e-6 or new_error < 0.01 * error or slopes[1] <= -0.1 * slopes[0]:
                break
            move = move / 2
        if error < 1e-9 and new_error >= 0.5 * error:  # as good as rounding lets it be
            return base * x
        x, gradient, error = new, new_gradient, new_error
        if x.max() > 1.5 and np.linalg.norm(rows.factor @ (base * x)) < STATIONARY * (base @ x):
            return None
    return None


def _inside(relative: Array, slopes: Array, power: float) -> Array:
    """Newton's step relative to x, changed so that x stays positive and that it still leads downhill."""
    if power < 1:
        # A large alpha asks some weights to become far smaller than others: by a factor a step, without holding up
        # the rest.
        move = np.where(relative > -0.5, relative, np.exp(relative.clip(-20, 0)) - 1)
        if slopes @ move < 0:
            return move
    return relative * min(1.0, 0.99 / max(-relative.min(), 1e-300))


def _gradient(correlation: Array, base: Array, x: Array, power: float) -> tuple[Array, float]:
    """The potential's gradient in y = b x, and its largest entry relative to what makes it up."""
    image, bargain = correlation @ (base * x), base * x**-power
    # The last term stands for what rounding leaves where large weights cancel.
    size = np.abs(image) + bargain + 1e-6 * (base @ x)
    return image - bargain, float(np.abs((image - bargain) / size).max())
