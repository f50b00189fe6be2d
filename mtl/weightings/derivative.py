"""The weight that a weighting gives to one task's loss, as a derivative."""

from __future__ import annotations

import torch
from torch import Tensor

from mtl.weightings.weighting import Weighting


def weight_of(weighting: Weighting, task: str, loss: Tensor, learn: bool = True, loss_scale: float = 1.0) -> Tensor:
    """The weight of ``task``: the derivative of its scaled loss with respect to ``loss``, a scalar.

    ``loss.backward(weight)`` has the effect of ``weighting(task, loss).backward()``, whether or not the weighting is
    linear in the loss. ``learn`` also adds the gradient of the scaled loss, times ``loss_scale``, to the ``.grad`` of
    the weighting's own parameters.
    """
    leaf = loss.detach().requires_grad_()
    scaled = weighting(task, leaf)
    if scaled is leaf:  # equal weighting; a backward pass would cost more than a small head
        return torch.ones_like(loss)
    if not learn:
        return torch.autograd.grad(scaled, leaf)[0]
    scaled.backward(torch.full_like(scaled, loss_scale))
    assert leaf.grad is not None
    return leaf.grad if loss_scale == 1 else leaf.grad.div_(loss_scale)
