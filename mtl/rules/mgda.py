import torch

from mtl.rules.preference import PreferenceRule
from mtl.rules.rule import Array
from mtl.rules.solvers import min_norm_weights


class MGDA(PreferenceRule):
    """The shortest convex combination of the task gradients.

    ``w = argmin |sum_i w_i g_i|^2`` over the simplex. The direction d satisfies ``<g_i, d> >= |d|^2`` for all i, the
    largest improvement that a convex combination can guarantee to every task. It favours short gradients. With
    ``space=features`` this is MGDA-UB, the upper bound of Sener & Koltun.

    A zero gradient is the shortest combination and has all the weight, shared with other zero gradients: the point is
    Pareto-stationary, and the trunk does not move. ``preference`` p, see :class:`PreferenceRule`: the shortest convex
    combination of the ``g_i / p_i``, so that the improvement that is guaranteed to a task is in proportion to ``p_i``;
    the weights sum to one.

    Promises: every task improves by ``|d|^2`` or more, the most that convex weights can guarantee.

    Fails for: tasks that are done, or measured in a small unit: the shortest gradient gets the weight, and the trunk
    slows down.

    Source: Désidéri 2012; Sener & Koltun 2018, equation 3. Solved exactly by nonnegative least squares. LibMTL and
    TorchJD stop a Frank-Wolfe or projected gradient method early and miss the optimum if norms differ. The normalised
    variants (l2, loss, loss+) are another problem, and LibMTL then sums the normalised gradients, unlike the official
    code; a loss weighting has the same purpose here.
    """

    def weigh(self, gram: Array) -> Array:
        """Return the weights on the simplex."""
        return min_norm_weights(torch.from_numpy(gram)).numpy()

    def weigh_preferred(self, gram: Array, preference: Array) -> Array:
        """Return the weights on the simplex; the guaranteed improvements are in proportion to ``preference``."""
        weights = super().weigh_preferred(gram, 1 / preference)
        return weights / weights.sum()
