import numpy as np

from mtl.rules.rule import Array, Indices, Random, Rule, new_generator
from mtl.rules.solvers import unit_rows


class PCGrad(Random, Rule):
    """Project each task gradient onto the normal plane of every other one that it conflicts with; then sum.

    For every task i, start with ``h_i = g_i`` and visit the other tasks j in random order: if ``<h_i, g_j> < 0``, then
    ``h_i <- h_i - <h_i, g_j> / |g_j|^2 g_j``. The direction is ``sum_i h_i``. With two tasks it does not depend on the
    order and conflicts with neither task; with more it may conflict.

    A zero gradient has weight one and changes nothing. ``seed`` starts the rule's own generator, whose state is in
    ``state_dict``.

    Promises: of two tasks none is hurt.

    Fails for: more than two tasks, where the random order decides and a task may be hurt; long gradients dominate.

    Source: Yu et al. 2020, algorithm 1. LibMTL includes j = i, which the paper excludes.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.generator = new_generator(seed)

    def weigh(self, gram: Array) -> Array:
        """Return the weights of the summed direction."""
        rows = unit_rows(gram)
        orders = restrict_orders(rows.alive, self.orders(len(gram)))
        own = np.arange(len(rows.norms))
        # Row i is h_i / |g_i| as a combination of unit rows. The h_i do not depend on each other, so all are updated
        # at once.
        combined = np.eye(len(own))
        for others in orders.T:
            products = np.einsum("ik,ik->i", combined, rows.correlation[others])
            combined[own, others] -= np.minimum(products, 0)
        return rows.scatter(rows.norms @ combined / rows.norms, zero=1.0)


def restrict_orders(alive: np.ndarray, orders: Indices) -> Indices:
    """The orders of all tasks without those that are not ``alive``; the rest is renumbered."""
    if alive.all():
        return orders
    numbers = np.cumsum(alive) - 1
    kept = [numbers[order[alive[order]]] for order in orders[alive]]
    return np.array(kept, dtype=np.intp).reshape(len(kept), max(len(kept) - 1, 0))
