"""The point of a problem without data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Theta(nn.Module):
    """One trainable point that is its own features, whatever the inputs: ``[B, len(start)]``, in float64.

    ``start`` is where it begins. For problems without data, whose heads are functions of the point: see mtl.data.toy.
    """

    def __init__(self, start: Sequence[float]) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(list(start), dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        """The point, once for every sample."""
        return self.theta.expand(len(inputs), -1)
