from collections.abc import Sequence

import numpy as np

from mtl.preference import Preference
from mtl.rules.fair import fair_weights
from mtl.rules.preference import PreferenceRule
from mtl.rules.rule import Array
from mtl.rules.solvers import unit_rows


class NashMTL(PreferenceRule):
    """Nash's bargaining solution: the weights ``w > 0`` with ``G w = 1 / w``, elementwise.

    Every task improves by ``<g_i, d> = 1 / w_i``, and ``|d| = sqrt(K)`` whatever the norms of the gradients. The paper
    then clips the shared gradient to norm 1, which is left to the trainer here.

    Dependent gradients have a solution if a direction improves every task. If none does (the point is
    Pareto-stationary, to 1e-6 of the unit rows), the direction is zero, the disagreement point of the bargaining game;
    the weights are ``K z_i / |g_i|`` with z the shortest convex combination of unit rows. A zero gradient is excluded
    and has weight zero.

    ``normalize`` divides G by its Frobenius norm first. This changes only the length of the direction, and makes heads
    that are scaled by the weights independent of the size of the shared gradients. The official code divides too, but
    only inside its solver: its weights are those of G.

    ``preference`` q, see :class:`PreferenceRule`: the asymmetric bargaining solution ``(G w)_i = q_i / w_i``, which
    maximises ``prod_i <g_i, d>^q_i``.

    Promises: every task improves to first order, and the direction does not depend on the scale of any loss.

    Fails for: points near Pareto stationarity, where the weights grow without bound; without clipping the step never
    shrinks.

    Source: Navon et al. 2022, equation 2 (claim 3.2). Solved to rounding errors by Newton's method. The official code
    linearises and stops after 20 rounds of cvxpy; it and LibMTL fall back to equal weights without their solver.
    """

    def __init__(
        self, normalize: bool = False, preference: Preference | None = None, tasks: Sequence[str] | None = None
    ) -> None:
        super().__init__(preference, tasks)
        self.normalize = normalize

    def weigh(self, gram: Array) -> Array:
        """Return the bargaining weights."""
        return self.weigh_preferred(gram, np.ones(len(gram)))

    def weigh_preferred(self, gram: Array, preference: Array) -> Array:
        """Return the bargaining weights of tasks with the bargaining powers ``preference``."""
        rows = unit_rows(gram)
        if not len(rows.norms):
            return np.zeros(len(gram))
        weights = fair_weights(rows, 1.0, preference[rows.alive])
        if self.normalize:
            largest = rows.norms.max()  # divided out first, because its fourth power may overflow
            weights = weights * largest * np.sqrt(np.linalg.norm(gram / largest / largest))
        return rows.scatter(weights)
