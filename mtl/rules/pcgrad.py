import numpy as np

from mtl.rules.rule import Array, Indices, Random, Rule, new_generator
from mtl.rules.solvers import unit_rows


class PCGrad(Random, Rule):
    """Each gradient loses its components against the others that it conflicts with; then all are summed.

    For every task i, over the others j != i in random order: where <h_i, g_j> < 0, with h_i = g_i at first,
    h_i <- h_i - <h_i, g_j> / |g_j|^2 g_j. The direction is sum_i h_i. With two tasks the order does not
    matter and the direction conflicts with neither; with more it may.

    A zero gradient gets the weight one and changes nothing. ``seed`` starts the rule's own generator, whose
    state is in ``state_dict``.

    Source: Yu et al. 2020, algorithm 1. LibMTL also projects g_i onto itself (j = i), which the paper
    excludes.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.generator = new_generator(seed)

    def weigh(self, gram: Array) -> Array:
        """Return the weights of the summed direction."""
        rows = unit_rows(gram)
        orders = among(rows.alive, self.orders(len(gram)))
        own = np.arange(len(rows.norms))
        # Row i holds h_i / |g_i| as a combination of unit rows. Tasks do not depend on each other: all
        # advance at once.
        combined = np.eye(len(own))
        for others in orders.T:
            products = np.einsum("ik,ik->i", combined, rows.correlation[others])
            combined[own, others] -= np.minimum(products, 0)
        return rows.spread(rows.norms @ combined / rows.norms, zero=1.0)


def among(alive: np.ndarray, orders: Indices) -> Indices:
    """The orders of all tasks as orders of those that are ``alive``, numbered anew."""
    if alive.all():
        return orders
    numbers = np.cumsum(alive) - 1
    kept = [numbers[order[alive[order]]] for order in orders[alive]]
    return np.array(kept, dtype=np.intp).reshape(len(kept), max(len(kept) - 1, 0))
