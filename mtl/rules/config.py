import numpy as np

from mtl.rules.imtl_g import equal_projections
from mtl.rules.rule import Array, Rule
from mtl.rules.solvers import unit_rows


class ConFIG(Rule):
    """The direction with one positive cosine to every gradient, as long as the gradients' projections on it.

    With U the unit rows: u = U^+ 1 / |U^+ 1| and d = (sum_i <g_i, u>) u. In terms of the correlation matrix
    C and the norms n: c = C^+ 1, |U^+ 1|^2 = c'Cc, w = c / n * (n'Cc) / (c'Cc).

    Dependent gradients: the pseudo-inverse makes the cosines as equal as they can be in the sense of least
    squares; where that is the zero direction (two opposite gradients), the weights are zero. A zero
    gradient has no direction and gets the weight zero.

    Source: Liu et al. 2024, equations 2 and 3. The official code inverts the [K, n] matrix; the K x K one
    is enough.
    """

    def weigh(self, gram: Array) -> Array:
        """Return the weights; the direction is on the scale of the sum of the gradients."""
        rows = unit_rows(gram)
        if not len(rows.norms):
            return np.zeros(len(gram))
        coefficients, _ = equal_projections(rows.factor)
        direction = rows.factor @ coefficients
        square = direction @ direction
        if square < 1e-12:  # |U^+ 1|^2 is at least about 1 / K unless 1 is in the kernel
            return np.zeros(len(gram))
        relative = rows.norms / rows.norms.max()
        length = relative @ (rows.factor.T @ direction) / square
        return rows.spread(coefficients * length / relative)
