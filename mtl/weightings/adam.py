from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mtl.errors import require


class Adam(nn.Module):
    """Adam for a vector with one entry per task, which a weighting updates itself.

    The step is that of torch.optim.Adam (Kingma & Ba 2015, algorithm 1, with weight decay added to the gradient).
    Unlike there, every entry has its own count of steps, and an entry that is excluded from a step keeps its value and
    moments; torch's optimizer would move it by its momentum.
    """

    counts: Tensor
    means: Tensor
    squares: Tensor

    def __init__(self, size: int, lr: float, weight_decay: float = 0.0) -> None:
        super().__init__()
        require("lr", lr, "above 0", 0 < lr < math.inf)
        self.lr, self.weight_decay = lr, weight_decay
        self.beta1, self.beta2, self.epsilon = 0.9, 0.999, 1e-8
        for name in ("counts", "means", "squares"):
            self.register_buffer(name, torch.zeros(size))

    def step(self, values: Tensor, gradient: Tensor, moving: Tensor) -> None:
        """Update the entries of ``values`` with true ``moving`` in place; the gradient of the others may be NaN."""
        gradient = gradient + self.weight_decay * values
        self.counts += moving
        self.means.copy_(torch.where(moving, self.means.lerp(gradient.to(self.means), 1 - self.beta1), self.means))
        squares = self.beta2 * self.squares + (1 - self.beta2) * gradient.square()
        self.squares.copy_(torch.where(moving, squares, self.squares))
        # 1 - beta^count without cancellation in float32
        bias1 = -torch.expm1(self.counts * math.log(self.beta1))
        bias2 = -torch.expm1(self.counts * math.log(self.beta2))
        change = self.lr * (self.means / bias1) / ((self.squares / bias2).sqrt() + self.epsilon)
        values.copy_(torch.where(moving, values - change, values))
