"""Loss weightings: each scales a task's loss before that task's own backward.

A weighting is a module with ``forward(task, loss) -> scaled loss``, or ``weights(losses)`` where it needs the
losses of all tasks first; see the class Weighting.
"""

import torch
from torch import Tensor

from mtl.weightings.dwa import DWA
from mtl.weightings.equal import Equal
from mtl.weightings.famo import FAMO
from mtl.weightings.gls import GLS
from mtl.weightings.gradnorm import GradNorm
from mtl.weightings.imtl_l import IMTLL
from mtl.weightings.log import Log
from mtl.weightings.random import Random
from mtl.weightings.static import Static
from mtl.weightings.stch import STCH
from mtl.weightings.uw import UW
from mtl.weightings.weighting import Weighting

__all__ = [
    "DWA",
    "FAMO",
    "GLS",
    "IMTLL",
    "STCH",
    "UW",
    "Equal",
    "GradNorm",
    "Log",
    "Random",
    "Static",
    "Weighting",
    "slope_of",
    "weight_of",
]


def weight_of(weighting: Weighting, task: str, loss: Tensor, loss_scale: float = 1.0) -> Tensor:
    """The weight of ``task``: the derivative of its scaled loss with respect to ``loss``, a scalar.

    ``loss.backward(weight)`` then has the effect of ``weighting(task, loss).backward()`` for any weighting,
    linear in the loss or not; what the weighting learns has its gradient, times ``loss_scale``, when this returns.
    """
    leaf = loss.detach().requires_grad_()
    scaled = weighting(task, leaf)
    if scaled is leaf:  # a backward pass costs more than a small head
        return torch.ones_like(loss)
    scaled.backward(torch.full_like(scaled, loss_scale))
    assert leaf.grad is not None
    return leaf.grad if loss_scale == 1 else leaf.grad.div_(loss_scale)


def slope_of(weighting: Weighting, task: str, loss: Tensor) -> Tensor:
    """The same weight, without a gradient for what the weighting learns."""
    leaf = loss.detach().requires_grad_()
    return torch.autograd.grad(weighting(task, leaf), leaf)[0]
