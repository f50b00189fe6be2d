import numpy as np

from mtl.rules.fair import fair_weights
from mtl.rules.rule import Array, Rule
from mtl.rules.solvers import unit_rows


class NashMTL(Rule):
    """Nash's bargaining solution: the weights with G w = 1 / w, element by element.

    Every task then gains <g_i, d> = 1 / w_i > 0, and |d| = sqrt(K) whatever the gradients' norms: the paper
    clips the shared gradient to the norm 1 afterwards, which is the optimizer's side of things and not done
    here.

    Dependent gradients have a solution as long as some direction helps every task. Where none does (the
    point is Pareto-stationary to 1e-6 of the unit rows), the players' disagreement is the answer: a zero
    direction, by the weights K z_i / |g_i| with z the shortest combination of unit rows. A zero gradient
    does not bargain and gets the weight zero.

    ``normalize``: G is divided by its Frobenius norm first. The direction stays the same but for its
    length, and heads that are scaled by the weights no longer depend on the size of the shared gradients.
    The official code divides, too, but only for its solver's sake: its weights are those of G itself.

    Source: Navon et al. 2022, equation 2 (its claim 3.2). Solved to rounding by Newton's method. The
    official code linearises and stops after 20 rounds of cvxpy; it and LibMTL leave equal weights when
    their solver is missing.
    """

    def __init__(self, normalize: bool = False) -> None:
        super().__init__()
        self.normalize = normalize

    def weigh(self, gram: Array) -> Array:
        """Return the bargaining weights."""
        rows = unit_rows(gram)
        if not len(rows.norms):
            return np.zeros(len(gram))
        weights = fair_weights(rows, 1.0)
        if self.normalize:
            largest = rows.norms.max()  # taken out first: its fourth power may leave float64's range
            weights = weights * largest * np.sqrt(np.linalg.norm(gram / largest / largest))
        return rows.spread(weights)
