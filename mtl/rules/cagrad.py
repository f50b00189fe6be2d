import numpy as np
from scipy.linalg.lapack import dgeqrf, dtrtrs

from mtl.errors import require
from mtl.rules.rule import Array, Indices, Rule
from mtl.rules.solvers import SolverError, in_one_thread, least_distance, unit_rows

# The conditions of optimality hold to this, relative to the mean gradient and the unit rows.
EXACT = 1e-11


class CAGrad(Rule):
    """The direction near the mean gradient that is best for the task it serves worst.

    max_d min_i <g_i, d> such that |d - g_0| <= c |g_0|, with g_0 the mean of the gradients; in the paper's
    dual form d = g_0 + c |g_0| g_w / |g_w|, g_w = sum_i w_i g_i, w = argmin over the simplex of <g_w, g_0>
    + c |g_0| |g_w|.

    ``c`` >= 0: 0 gives the mean gradient; the paper takes c < 1, where the mean of the losses still
    converges. Where no direction helps every task (a Pareto-stationary point), d is what DualProj finds, if
    it lies in the ball: no task is hurt. If g_0 is zero, the weights are 1/K. A zero gradient has no say in
    the minimum and keeps its 1/K.

    Source: Liu et al. 2021, equation 3 and algorithm 1. The official code divides by 1 + c (toy) or 1 + c^2
    and multiplies by K, LibMTL divides by 1 + c^2 only; the paper does neither. TorchJD returns zero at a
    Pareto-stationary point. They use general solvers; here the optimum is found exactly, see ``_nearest``.
    """

    def __init__(self, c: float = 0.5) -> None:
        super().__init__()
        require("c", c, "0 or more", 0 <= c < np.inf)
        self.c = c

    def weigh(self, gram: Array) -> Array:
        """Return the weights; for c = 0 they are 1/K."""
        rows, count = unit_rows(gram), len(gram)
        equal = np.full(count, 1 / count)
        if not len(rows.norms) or self.c == 0:
            return equal
        relative = rows.norms / rows.norms.max()
        mean = rows.factor @ relative / count
        length = np.linalg.norm(mean)
        if length < 1e-14:
            return equal
        with in_one_thread():
            added = _nearest(rows.factor, mean / length, relative.min() / relative, self.c)
        return equal + rows.spread(added * length / relative)


def _nearest(factor: Array, mean: Array, slope: Array, radius: float) -> Array:
    """The v >= 0 of the best direction d = mean + sum v_i u_i with |d - mean| <= radius; |mean| = 1.

    For a guaranteed gain m, let x(m) be the shortest x with <u_i, mean + x> >= m slope_i for all i (slope_i
    = 1 / |g_i| in units of the largest). |x(m)| is convex and grows with m; wanted is the largest m with
    |x(m)| <= radius. As long as the same inequalities are tight, |x(m)|^2 is a quadratic in m: its root is
    the next m, until the inequalities that are tight at m are those at its root. A bracket around m catches
    what strays.
    """
    own = factor.T @ mean
    low, high = float((own / slope).min()), 1 + radius
    gain = high
    multipliers = least_distance(factor, gain * slope - own)
    if multipliers is None:  # zero is in the hull of the rows: nobody can gain unless somebody loses
        multipliers = least_distance(factor, -own)
        if multipliers is not None and np.linalg.norm(factor @ multipliers) <= radius:
            return multipliers
        gain = high = 0.0
    for _ in range(100):
        if multipliers is not None:
            tight = np.flatnonzero(multipliers > 0)
            root, exact = _on_support(factor[:, tight], own[tight], slope[tight], radius)
            if root is not None and _is_optimal(factor, own, slope, root, tight, exact):
                multipliers[:] = 0
                multipliers[tight] = np.maximum(exact, 0)
                return multipliers
            inside = np.linalg.norm(factor @ multipliers) <= radius
            low, high = (gain, high) if inside else (low, gain)
        else:
            root, high = None, gain
        gain = root if root is not None and low < root < high else (low + high) / 2
        multipliers = least_distance(factor, gain * slope - own)
    raise SolverError(f"CAGrad with c={radius:g} did not find the optimum for {len(own)} tasks.")


def _on_support(factor: Array, own: Array, slope: Array, radius: float) -> tuple[float | None, Array]:
    """The gain m for which the shortest x with <u_i, mean + x> = m slope_i is ``radius`` long, and its v."""
    if not 0 < factor.shape[1] <= factor.shape[0]:
        return None, own
    # F = QR; LAPACK's own names, because scipy's wrappers take longer than the work.
    upper = dgeqrf(factor)[0][: factor.shape[1]]
    if np.abs(upper.diagonal()).min() < 1e-12:
        return None, own
    p, q = dtrtrs(upper, np.stack([slope, own], 1), trans=1)[0].T
    # |m p - q| = radius, the larger root.
    centre = (p @ q) / (p @ p)
    rest = radius**2 - ((q - centre * p) ** 2).sum()
    if rest < 0:
        return None, own
    root = centre + np.sqrt(rest / (p @ p))
    return root, dtrtrs(upper, root * p - q)[0]


def _is_optimal(factor: Array, own: Array, slope: Array, gain: float, tight: Indices, multipliers: Array) -> bool:
    gains = own + factor.T @ (factor[:, tight] @ multipliers)
    size = EXACT * (1 + np.abs(multipliers).sum())
    return bool(multipliers.min() >= -size and (gains - gain * slope).min() >= -size)
