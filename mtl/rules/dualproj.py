import numpy as np

from mtl.rules.rule import Array, Rule
from mtl.rules.solvers import onto_dual_cone, unit_rows


class DualProj(Rule):
    """The mean gradient, moved as little as makes it conflict with no task.

    argmin_d |d - (1/K) sum_i g_i| such that <d, g_i> >= 0 for all i. At a Pareto-stationary point d may be
    zero. A zero gradient keeps its 1/K and constrains nothing.

    Source: Lopez-Paz & Ranzato 2017, equation 8 (GEM); in this form Quinton & Rey 2024, section 4. Solved
    exactly; TorchJD adds 1e-4 to the diagonal, which leaves conflicts where norms differ.
    """

    def weigh(self, gram: Array) -> Array:
        """Return the weights; without conflicts they are 1/K."""
        rows = unit_rows(gram)
        if not len(rows.norms):
            return np.full(len(gram), 1 / len(gram))
        relative = rows.norms / rows.norms.max()
        added = onto_dual_cone(rows.factor, rows.factor @ relative)
        return rows.spread(1 + added / relative, zero=1.0) / len(gram)
