import torch

from mtl.rules.rule import Array, Rule
from mtl.rules.solvers import min_norm_weights


class MGDA(Rule):
    """The shortest direction in the hull of the gradients: argmin_{w >= 0, sum w = 1} |sum w_i g_i|^2.

    No other convex combination guarantees every task as much: <g_i, d> >= |d|^2 for all i, with d the
    direction. It leans towards the shortest gradients. A zero gradient is itself the shortest direction and
    takes all the weight (zero gradients share it): the point is Pareto-stationary, and the trunk rests.

    Source: Désidéri 2012; Sener & Koltun 2018, equation 3. Solved exactly by non-negative least squares.
    LibMTL and TorchJD stop a Frank-Wolfe or projected gradient method early, which misses the optimum where
    norms differ. Normalised variants (l2, loss, loss+) change the problem, and LibMTL sums the normalised
    gradients while the official code does not: give the losses a weighting instead.
    """

    def weigh(self, gram: Array) -> Array:
        """Return the weights on the simplex."""
        return min_norm_weights(torch.from_numpy(gram)).numpy()
