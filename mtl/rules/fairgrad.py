import numpy as np

from mtl.errors import require
from mtl.rules.fair import fair_weights
from mtl.rules.rule import Array, Rule
from mtl.rules.solvers import unit_rows


class FairGrad(Rule):
    """Alpha-fair sharing of the progress: the weights w > 0 with G w = w^(-1/alpha), element by element.

    ``alpha`` > 0: towards 0 the plain sum, 1 proportional fairness (Nash-MTL without its clip), large alpha the best
    for the task that gains least. Beyond about 20, w = gain^(-alpha) can leave float64's range: SolverError.

    Dependent gradients have a solution as long as some direction helps every task. Where none does (the
    point is Pareto-stationary to 1e-6 of the unit rows), the direction is zero, by the weights of the
    shortest combination of unit rows. A zero gradient takes no part and gets the weight zero.

    Source: Ban & Ji 2024, equation 7. Solved to rounding by Newton's method; the official code and LibMTL
    use scipy's least_squares. The official code also multiplies by K and clips to the norm 1, which the
    paper does not have; LibMTL scales the heads by w, which neither has.
    """

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__()
        require("alpha", alpha, "above 0", alpha > 0 and np.isfinite(alpha))
        self.alpha = alpha

    def weigh(self, gram: Array) -> Array:
        """Return the alpha-fair weights."""
        rows = unit_rows(gram)
        return rows.spread(fair_weights(rows, self.alpha)) if len(rows.norms) else np.zeros(len(gram))
