import numpy as np

from mtl.errors import require
from mtl.rules.rule import Array, Rule


class Krum(Rule):
    """The mean of the ``selected`` task gradients that are nearest to their neighbours.

    With f = ``byzantine`` arbitrary gradients, the score of ``g_i`` is the sum of its squared distances to the K - f -
    2 nearest others; the lowest scores are selected. Gradients that tie for the last places share them, so that the
    order of the tasks does not matter.

    The paper assumes K > 2f + 2. With fewer than f + 3 tasks there is no neighbour by this count; one is used then, and
    a single task has weight one. A zero gradient is a point like any other.

    Promises: ``byzantine`` arbitrary gradients cannot lead the direction away.

    Fails for: tasks, as it was made for workers on one loss: with ``selected=1`` the trunk follows one task's gradient
    alone.

    Source: Blanchard et al. 2017, section 4. TorchJD sums distances that are not squared.
    """

    def __init__(self, byzantine: int = 1, selected: int = 1) -> None:
        super().__init__()
        require("byzantine", byzantine, "0 or more", byzantine >= 0)
        require("selected", selected, "1 or more", selected >= 1)
        self.byzantine, self.selected = byzantine, selected

    def weigh(self, gram: Array) -> Array:
        """Return the weights, which sum to one."""
        count = len(gram)
        squares = gram / max(gram.diagonal().max(), 1e-300)
        distances = np.maximum(squares.diagonal()[:, None] + squares.diagonal() - 2 * squares, 0)
        np.fill_diagonal(distances, np.inf)
        neighbours = max(count - self.byzantine - 2, 1)
        scores = np.sort(distances, 1)[:, : min(neighbours, count - 1)].sum(1)
        selected = min(self.selected, count)
        limit = np.sort(scores)[selected - 1]
        equal = np.abs(scores - limit) <= 1e-12 * count
        taken = (scores < limit) & ~equal
        return (taken + equal * ((selected - taken.sum()) / equal.sum())) / selected
