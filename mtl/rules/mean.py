import numpy as np

from mtl.rules.rule import Array, Rule


class Mean(Rule):
    """Weights of 1/K: the gradient of the mean of the losses. K includes zero gradients.

    Promises: none; a baseline.

    Fails for: losses of different sizes: the longest gradients decide.
    """

    def weigh(self, gram: Array) -> Array:
        """Return 1/K for each of the K tasks."""
        return np.full(len(gram), 1 / len(gram))
