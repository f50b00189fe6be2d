import numpy as np

from mtl.rules.imtl_g import projections_onto
from mtl.rules.preference import PreferenceRule
from mtl.rules.rule import Array
from mtl.rules.solvers import unit_rows


class ConFIG(PreferenceRule):
    """The direction with the same positive cosine to every task gradient; its length is the sum of their projections.

    With U the unit task gradients, ``u = U^+ 1 / |U^+ 1|`` and ``d = (sum_i <g_i, u>) u``. With the correlation matrix
    C and the norms n: ``c = C^+ 1``, ``|U^+ 1|^2 = c'Cc`` and ``w = c / n * (n'Cc) / (c'Cc)``.

    Dependent gradients: the pseudo-inverse gives the least-squares solution for equal cosines. If that is the zero
    direction, as for two opposite gradients, the weights are zero. A zero gradient has no direction and weight zero.

    ``preference`` p, see :class:`PreferenceRule`, takes the place of 1: the cosines are in proportion to p.

    Promises: the same positive cosine to every gradient, where they are independent.

    Fails for: opposed gradients, whose common cosine and so the step goes to zero; short, noisy gradients count as much
    as long ones.

    Source: Liu et al. 2024, equations 2 and 3. The official code inverts the ``[K, n]`` matrix; ``[K, K]`` suffices.
    """

    def weigh(self, gram: Array) -> Array:
        """Return the weights; the direction is on the scale of the sum of the gradients."""
        return self.weigh_preferred(gram, np.ones(len(gram)))

    def weigh_preferred(self, gram: Array, preference: Array) -> Array:
        """Return the weights whose direction has cosines in proportion to ``preference``."""
        rows = unit_rows(gram)
        if not len(rows.norms):
            return np.zeros(len(gram))
        coefficients, _ = projections_onto(rows.factor, preference[rows.alive])
        direction = rows.factor @ coefficients
        square = direction @ direction
        if square < 1e-12:  # |U^+ p|^2 is at least about 1 / K, unless p is in the kernel
            return np.zeros(len(gram))
        relative = rows.norms / rows.norms.max()
        length = relative @ (rows.factor.T @ direction) / square
        return rows.scatter(coefficients * length / relative)
