import numpy as np

from mtl.rules.preference import PreferenceRule
from mtl.rules.rule import Array
from mtl.rules.solvers import UnitRows, dual_cone_multipliers, unit_rows


class UPGrad(PreferenceRule):
    """Project each task gradient onto the directions that conflict with no task; then average.

    ``d = (1/K) sum_i p_i`` with ``p_i = argmin_p |p - g_i|`` subject to ``<p, g_j> >= 0`` for all j. So d conflicts
    with no task; with two tasks, ``2 d`` is PCGrad's direction. At a Pareto-stationary point d may be zero. A zero
    gradient has weight 1/K and adds no constraint. ``preference`` p, see :class:`PreferenceRule`: the mean becomes
    ``(1/K) sum_i p_i proj(g_i)``; no preference makes the direction conflict with a task.

    Promises: no task is hurt to first order, and each gradient counts in proportion to its length.

    Fails for: a noisy task that opposes the others: it binds however short its gradient is, and the step shrinks.

    Source: Quinton & Rey 2024, "Jacobian descent for multi-objective optimization", equation 5. Solved exactly; TorchJD
    adds 1e-4 to the diagonal, so conflicts remain if norms differ.
    """

    def weigh(self, gram: Array) -> Array:
        """Return the weights: 1/K without conflicts."""
        rows = unit_rows(gram)
        relative = rows.norms / rows.norms.max(initial=0)
        added = _projections(rows)
        return rows.scatter(1 + relative @ added / relative, zero=1.0) / len(gram)


def _projections(rows: UnitRows) -> Array:
    """Row i: the multipliers ``s >= 0`` with which ``u_i + sum_j s_j u_j`` projects ``u_i`` onto the dual cone."""
    added, solved = _exchange(rows.correlation)
    for i in np.flatnonzero(~solved):
        added[i] = dual_cone_multipliers(rows.factor, rows.factor[:, i])
    return added


def _exchange(correlation: Array, rounds: int = 6) -> tuple[Array, np.ndarray]:
    """All projections at once by an exchange method: guess the positive multipliers, solve, swap the wrong guesses.

    Row i: the multipliers s, and whether they are optimal: ``s >= 0``, ``(C (e_i + s))_j >= 0``, and one of the two is
    zero for every j. Two or three rounds suffice for nearly all rows of most matrices. The caller solves the others by
    a slower method that always terminates.
    """
    count = len(correlation)
    added, solved = np.zeros((count, count)), np.zeros(count, dtype=bool)
    active = correlation < 0
    for _ in range(rounds):
        todo = np.flatnonzero(~solved)
        if not len(todo):
            break
        mask = active[todo]
        # A ridge below rounding errors, so that dependent rows do not make the system singular; optimality is checked
        # below.
        system = correlation * (mask[:, :, None] & mask[:, None, :])
        system[:, np.arange(count), np.arange(count)] += np.where(mask, 1e-15, 1)
        try:
            right = np.where(mask, -correlation[todo], 0)[:, :, None]
            guess = np.linalg.solve(system, right)[:, :, 0]
        except np.linalg.LinAlgError:
            break
        products = guess @ correlation + correlation[todo]
        size = 1e-12 * (1 + np.abs(guess).sum(1, keepdims=True))
        wrong = np.where(mask, (guess < 0) | (np.abs(products) > size), products < -size)
        added[todo], solved[todo] = guess, ~wrong.any(1)
        active[todo] = np.where(mask, guess > 0, products < -size)
    return added, solved
