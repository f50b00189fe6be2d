import numpy as np
from scipy.linalg.lapack import dgeqrf, dtrtrs

from mtl.errors import require
from mtl.rules.rule import Array, Indices, Rule
from mtl.rules.solvers import SolverError, least_distance, single_threaded, unit_rows

# Tolerance of the optimality conditions, relative to the mean gradient and the unit rows.
EXACT = 1e-11


class CAGrad(Rule):
    """The direction in a ball around the mean gradient that maximises the smallest improvement of a task.

    ``max_d min_i <g_i, d>`` subject to ``|d - g_0| <= c |g_0|``, with ``g_0`` the mean of the task gradients. In the
    paper's dual form ``d = g_0 + c |g_0| g_w / |g_w|``, where ``g_w = sum_i w_i g_i`` and w minimises
    ``<g_w, g_0> + c |g_0| |g_w|`` over the simplex.

    ``c`` is 0 or more; 0 gives the mean gradient. The paper proves convergence of the mean loss for c < 1.

    At a Pareto-stationary point no direction improves every task; d is then the direction of :class:`DualProj` if that
    lies in the ball, so that no loss increases. If ``g_0`` is zero, the weights are 1/K. A zero gradient is excluded
    from the minimum and has weight 1/K.

    Promises: the best worst-case improvement within ``c |g_0|`` of the mean gradient.

    Fails for: one gradient that is far longer than the others: it sets the centre and the radius of the ball.

    Source: Liu et al. 2021, equation 3 and algorithm 1. The official code divides by 1 + c (toy problem) or 1 + c^2 and
    multiplies by K, LibMTL divides by 1 + c^2; the paper does none of these. TorchJD returns zero at a
    Pareto-stationary point. All three use general solvers; here the optimum is exact, see ``_best_in_ball``.
    """

    def __init__(self, c: float = 0.5) -> None:
        super().__init__()
        require("c", c, "0 or more", 0 <= c < np.inf)
        self.c = c

    def weigh(self, gram: Array) -> Array:
        """Return the weights: 1/K for c = 0."""
        rows, count = unit_rows(gram), len(gram)
        equal = np.full(count, 1 / count)
        if not len(rows.norms) or self.c == 0:
            return equal
        relative = rows.norms / rows.norms.max()
        mean = rows.factor @ relative / count
        length = np.linalg.norm(mean)
        if length < 1e-14:
            return equal
        with single_threaded():
            added = _best_in_ball(rows.factor, mean / length, relative.min() / relative, self.c)
        return equal + rows.scatter(added * length / relative)


def _best_in_ball(factor: Array, mean: Array, slope: Array, radius: float) -> Array:
    """The multipliers ``v >= 0`` of the best ``d = mean + sum_i v_i u_i`` with ``|d - mean| <= radius``.

    ``mean`` has length one. For a gain m of every task, let x(m) be the shortest x with ``<u_i, mean + x> >= m
    slope_i`` for all i, where ``slope_i`` is the inverse norm of ``g_i`` in units of the largest. ``|x(m)|`` is convex
    and increasing in m. The optimum is the largest m with ``|x(m)| <= radius``. While the set of tight inequalities is
    constant, ``|x(m)|^2`` is quadratic in m, so the next m is its root. The iteration ends when the tight inequalities
    at m are those at the root; a bracket around m guards it.
    """
    own = factor.T @ mean
    low, high = float((own / slope).min()), 1 + radius
    gain = high
    multipliers = least_distance(factor, gain * slope - own)
    if multipliers is None:  # zero is in the convex hull of the rows: no direction improves every task
        multipliers = least_distance(factor, -own)
        if multipliers is not None and np.linalg.norm(factor @ multipliers) <= radius:
            return multipliers
        gain = high = 0.0
    for _ in range(100):
        if multipliers is not None:
            tight = np.flatnonzero(multipliers > 0)
            root, exact = _gain_on_boundary(factor[:, tight], own[tight], slope[tight], radius)
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


def _gain_on_boundary(factor: Array, own: Array, slope: Array, radius: float) -> tuple[float | None, Array]:
    """The m at which the shortest x with ``<u_i, mean + x> = m slope_i`` has length ``radius``; and its multipliers."""
    if not 0 < factor.shape[1] <= factor.shape[0]:
        return None, own
    # F = QR by LAPACK directly, because SciPy's wrappers take longer than the computation.
    upper = dgeqrf(factor)[0][: factor.shape[1]]
    if np.abs(upper.diagonal()).min() < 1e-12:
        return None, own
    p, q = dtrtrs(upper, np.stack([slope, own], 1), trans=1)[0].T
    # The larger root of |m p - q| = radius.
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
