import numpy as np

from mtl.rules.rule import Array, Rule


class Sum(Rule):
    """Weights of one: the gradient of the sum of the losses, for zero gradients too."""

    def weigh(self, gram: Array) -> Array:
        """Return ones."""
        return np.ones(len(gram))
