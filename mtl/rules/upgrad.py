import numpy as np

from mtl.rules.rule import Array, Rule
from mtl.rules.solvers import UnitRows, onto_dual_cone, unit_rows


class UPGrad(Rule):
    """Each gradient is moved as little as makes it conflict with no task; then they are averaged.

    d = (1/K) sum_i argmin_d |d - g_i| such that <d, g_j> >= 0 for all j. It conflicts with no task; with
    two tasks, K times it is PCGrad's direction. At a Pareto-stationary point it may be zero. A zero
    gradient keeps its 1/K and constrains nothing.

    Source: Quinton & Rey 2024, "Jacobian descent for multi-objective optimization", equation 5. Solved
    exactly; TorchJD adds 1e-4 to the diagonal, which leaves conflicts where norms differ.
    """

    def weigh(self, gram: Array) -> Array:
        """Return the weights; without conflicts they are 1/K."""
        rows = unit_rows(gram)
        relative = rows.norms / rows.norms.max(initial=0)
        added = _projections(rows)
        return rows.spread(1 + relative @ added / relative, zero=1.0) / len(gram)


def _projections(rows: UnitRows) -> Array:
    """Row i: the multipliers s >= 0 for which u_i + sum_j s_j u_j is u_i's projection onto the dual cone."""
    added, solved = _exchange(rows.correlation)
    for i in np.flatnonzero(~solved):
        added[i] = onto_dual_cone(rows.factor, rows.factor[:, i])
    return added


def _exchange(correlation: Array, rounds: int = 6) -> tuple[Array, np.ndarray]:
    """All projections at once: guess which multipliers are positive, solve for them, exchange wrong ones.

    Row i: s and whether it is optimal, as measured by the conditions themselves: s >= 0, (C (e_i + s))_j >=
    0, and one of the two zero for every j. It is right in two or three rounds for nearly all rows of most
    matrices; the rest is for the slower method that always ends.
    """
    count = len(correlation)
    added, solved = np.zeros((count, count)), np.zeros(count, dtype=bool)
    active = correlation < 0
    for _ in range(rounds):
        todo = np.flatnonzero(~solved)
        if not len(todo):
            break
        mask = active[todo]
        # A ridge below rounding keeps dependent rows from stopping the others; whether it mattered is
        # measured next.
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
