from __future__ import annotations

from mtl.engine.result import Measured
from mtl.engine.step import Step
from mtl.strategies.base import Strategy
from mtl.weightings import Weighting


class Naive(Strategy):
    """The sum of the weighted losses and one backward: plain training, every head's graph alive at once.

    The baseline that the other strategies are compared with. Measuring costs a second backward of each head, down to
    the features, and none of the trunk. ``token_chunks``, which the others take, must be 1.

    Promises: none; plain training.

    Fails for: losses of different sizes: the longest gradients decide; many heads: all of their graphs are in memory.
    """

    runs_every_head = False

    def __init__(self, weighting: Weighting, token_chunks: int = 1, space: Measured = "features") -> None:
        super().__init__(weighting, space)
        if token_chunks != 1:
            raise ValueError(
                f"token_chunks={token_chunks}: the naive strategy keeps every head's graph until its one backward, so "
                "that chunks would save nothing; use strategy=detached or one with a rule, as strategy=mgda."
            )

    def backward(self, step: Step) -> None:
        """The sum of the weighted losses, then one backward."""
        tap = step.tap()  # the features as the heads see them, in the graph: nothing is cut
        losses = {task.name: step.loss(task, tap) for task in step.tasks}  # every head's graph is alive
        weights = step.weigh(losses)
        tap.collect(losses, weights)  # only in a step that is measured
        tap.backward(losses, weights)  # sum(w_i * loss_i).backward()
        step.measure_conflict(tap)
