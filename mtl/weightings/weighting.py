from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


class Weighting(nn.Module):
    """What every loss weighting is: a module that says by how much each task's loss counts.

    Most know a task's weight from its own loss and define ``forward``. One that needs the losses of all tasks first
    sets ``needs_all_losses`` and defines ``weights`` instead: the strategy then keeps the tasks' gradients apart
    until the last head has run. The hooks are called once a step, with the tasks that were in the batch; all state
    belongs in ``state_dict``.
    """

    affine = False  # the scaled loss is a L + b with a known beforehand: with several processes, nothing has to wait
    needs_all_losses = False  # needs the losses of all tasks: weights() instead of forward()
    needs_gram = False  # wants the Gram matrix in observe(), at every step
    needs_losses_after_update = False  # of the same batch: costs one more forward pass

    def forward(self, task: str, loss: Tensor) -> Tensor:
        """The scaled loss of one task; what is learned gets its gradient from this expression."""
        raise TypeError(f"{type(self).__name__} needs the losses of all tasks: call weights().")

    def weights(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of all tasks from all their losses (detached scalars), where ``needs_all_losses`` is set."""
        raise TypeError(f"{type(self).__name__} knows each weight from its own loss: call it with that.")

    def observe(self, losses: Mapping[str, Tensor], gram: Tensor | None) -> None:
        """Learn from a step: the unscaled losses, and the Gram matrix of the scaled gradients if it was measured."""

    def observe_after_update(self, losses: Mapping[str, Tensor]) -> None:
        """Learn from the same batch's losses after the update, where ``needs_losses_after_update`` is set."""
