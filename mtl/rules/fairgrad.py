from collections.abc import Sequence

import numpy as np

from mtl.errors import require
from mtl.preference import Preference
from mtl.rules.fair import fair_weights
from mtl.rules.preference import PreferenceRule
from mtl.rules.rule import Array
from mtl.rules.solvers import unit_rows


class FairGrad(PreferenceRule):
    """Alpha-fair improvement of the tasks: the weights ``w > 0`` with ``G w = w^(-1/alpha)``, elementwise.

    ``alpha`` is above 0. Towards 0 the direction is the sum of the task gradients, 1 is proportional fairness (Nash-MTL
    without clipping), and a large alpha maximises the smallest improvement. Above about 20, w may leave the range of
    float64, which raises SolverError.

    Dependent gradients have a solution if a direction improves every task. If none does (the point is
    Pareto-stationary, to 1e-6 of the unit rows), the direction is zero, with the weights of the shortest convex
    combination of unit rows. A zero gradient is excluded and has weight zero.

    ``preference`` q, see :class:`PreferenceRule`: ``(G w)_i = (q_i / w_i)^(1/alpha)``. With alpha = 2 and q in
    proportion to the softmax of the tasks' scores against single-task runs it is PIVRG (Qin et al. 2025).

    Promises: every task improves to first order, by ``w_i^(-1/alpha)``.

    Fails for: points near Pareto stationarity, where the weights grow without bound; an ``alpha`` above about 20.

    Source: Ban & Ji 2024, equation 7. Solved to rounding errors by Newton's method; the official code and LibMTL use
    SciPy's least_squares. Unlike the paper, the official code multiplies by K and clips to norm 1, and LibMTL scales
    the heads by w.
    """

    def __init__(
        self, alpha: float = 1.0, preference: Preference | None = None, tasks: Sequence[str] | None = None
    ) -> None:
        super().__init__(preference, tasks)
        require("alpha", alpha, "above 0", alpha > 0 and np.isfinite(alpha))
        self.alpha = alpha

    def weigh(self, gram: Array) -> Array:
        """Return the alpha-fair weights."""
        return self.weigh_preferred(gram, np.ones(len(gram)))

    def weigh_preferred(self, gram: Array, preference: Array) -> Array:
        """Return the alpha-fair weights for tasks that count ``preference`` times."""
        rows = unit_rows(gram)
        if not len(rows.norms):
            return np.zeros(len(gram))
        return rows.scatter(fair_weights(rows, self.alpha, preference[rows.alive]))
