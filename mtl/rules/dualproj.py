import numpy as np

from mtl.rules.preference import PreferenceRule
from mtl.rules.rule import Array
from mtl.rules.solvers import dual_cone_multipliers, unit_rows


class DualProj(PreferenceRule):
    """The projection of the mean gradient onto the directions that conflict with no task.

    ``argmin_d |d - (1/K) sum_i g_i|`` subject to ``<d, g_i> >= 0`` for all i. At a Pareto-stationary point d may be
    zero. A zero gradient has weight 1/K and adds no constraint. ``preference`` p, see :class:`PreferenceRule`: what is
    projected is ``(1/K) sum_i p_i g_i``.

    Promises: no task is hurt to first order, as near to the mean gradient as that can be.

    Fails for: a noisy task that opposes the others: it binds however short its gradient is, and the step shrinks.

    Source: Lopez-Paz & Ranzato 2017, equation 8 (GEM); in this form Quinton & Rey 2024, section 4. Solved exactly;
    TorchJD adds 1e-4 to the diagonal, so conflicts remain if norms differ.
    """

    def weigh(self, gram: Array) -> Array:
        """Return the weights: 1/K without conflicts."""
        rows = unit_rows(gram)
        if not len(rows.norms):
            return np.full(len(gram), 1 / len(gram))
        relative = rows.norms / rows.norms.max()
        added = dual_cone_multipliers(rows.factor, rows.factor @ relative)
        return rows.scatter(1 + added / relative, zero=1.0) / len(gram)
