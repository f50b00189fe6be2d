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
    """The w > 0 with (G w)_i = w_i^(-1/alpha), for ``rows`` none of which is zero; alpha = 1 is Nash's equation.

    With n the norms in units of the largest and w_i = b_i x_i / n_i, b_i = n_i^((1 - alpha) / (1 + alpha)) (x = 1
    solves it for orthogonal rows), it is the stationarity of a strictly convex potential over x > 0,

        1/2 (b x)'C (b x) + sum_i b_i^2 p(x_i),   p'(x) = -x^(-1/alpha),

    which damped Newton steps minimise. The minimum exists, also for dependent rows, unless some non-negative
    combination of the rows is zero: a Pareto-stationary point, where no direction helps every task. There the
    answer is that combination, with weights K z_i / n_i (z on the simplex): its direction is zero.
    """
    exponent = (1 - alpha) / (1 + alpha)
    unit = rows.norms.max()
    base = (rows.norms / unit) ** exponent
    scaled = _newton(rows, base, 1 / alpha)
    if scaled is None:
        hull = shortest(rows._replace(norms=np.ones_like(rows.norms)))
        if np.linalg.norm(rows.factor @ hull) > 2 * STATIONARY:
            raise SolverError(f"Newton's method did not solve G w = w^(-1/{alpha:g}) for {len(hull)} tasks.")
        scaled = len(hull) * hull
    return scaled / rows.norms * unit**exponent


def _newton(rows: UnitRows, base: Array, power: float) -> Array | None:
    """The y = b x at the minimum, to the last digits of float64. None where it runs away to infinity."""
    x = np.ones_like(base)
    gradient, size = _gradient(rows.correlation, base, x, power)
    for _ in range(200):
        curvature = power * x ** (-power - 1)
        _, step, failed = dposv(rows.correlation + np.diag(curvature), -gradient)
        if failed:
            return None
        slope, relative = gradient @ step, step / (base * x)
        length = min(1.0, 0.9 / max(-relative.min(), 1e-300))
        last = (np.abs(gradient) / size).max() < 1e-12
        for _ in range(60):
            new = x * (1 + length * relative)
            gradient, size = _gradient(rows.correlation, base, new, power)
            # The potential is convex: a slope that has turned upwards says that the step was too long.
            if last or gradient @ step <= -0.1 * slope:
                break
            length /= 2
        x = new
        if last:
            return base * x
        if np.linalg.norm(rows.factor @ (base * x)) < STATIONARY * (base @ x):
            return None
    return None


def _gradient(correlation: Array, base: Array, x: Array, power: float) -> tuple[Array, Array]:
    """The potential's gradient in y = b x, and the size of what cancels in it."""
    image, bargain = correlation @ (base * x), base * x**-power
    return image - bargain, np.abs(image) + bargain + 1e-3 * np.abs(correlation) @ (base * x)
