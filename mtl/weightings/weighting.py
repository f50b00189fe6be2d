from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

# What happens where a method takes the logarithm of a loss.
WITHOUT_WEIGHT = "a loss at or below 0 has no logarithm, so the task has weight 0 and is not trained"


class Weighting(nn.Module):
    """Base class of loss weightings, which scale each task's loss.

    If a task's weight depends on its own loss alone, a subclass defines ``forward``. If it depends on the losses of all
    tasks, the subclass sets ``needs_all_losses`` and defines ``weights``; the strategy then keeps the task gradients
    separate until the last head has run. The ``observe`` hooks are called once per step, with the tasks in the batch.
    All state must be in ``state_dict``.
    """

    affine = False  # the scaled loss is a L + b and a is known beforehand, so ranks need not wait for the whole loss
    needs_all_losses = False  # defines weights() instead of forward()
    needs_gram = False  # needs the Gram matrix in observe(), in every step
    needs_losses_after_update = False  # of the same batch, which costs another forward pass

    @property
    def warmup(self) -> tuple[int, str]:
        """The steps before it finds weights of its own, and what it is until then."""
        return 0, ""

    def forward(self, task: str, loss: Tensor) -> Tensor:
        """Return the scaled loss of one task; learned parameters get their gradient from this expression."""
        raise TypeError(f"{type(self).__name__} needs the losses of all tasks: call weights().")

    def weights(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights of all tasks from their losses (detached scalars), if ``needs_all_losses`` is set."""
        raise TypeError(f"{type(self).__name__} weighs each loss on its own: call it with a task and its loss.")

    def out_of_domain(self, task: str, loss: float) -> str | None:
        """What happens to a task with this loss where the method is not made for such a loss; None where it is."""
        return None

    def chosen(self, task: str) -> float:
        """The constant weight that the user has given a task; 1 if the method finds the weights."""
        return 1.0

    def observe(self, losses: Mapping[str, Tensor], gram: Tensor | None) -> None:
        """Update the state from the unscaled losses of a step and, if measured, the scaled gradients' Gram matrix."""

    def observe_after_update(self, losses: Mapping[str, Tensor]) -> None:
        """Update the state from the same batch's losses after the update, if ``needs_losses_after_update`` is set."""
