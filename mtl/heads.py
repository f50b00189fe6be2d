"""Heads. Any ``nn.Module`` that maps the features to a prediction is one; these are what torch and timm lack."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class MLP(nn.Sequential):
    """One hidden layer: ``[..., in_features]`` -> ``[..., out_features]``."""

    def __init__(self, in_features: int, out_features: int, hidden_features: int = 256) -> None:
        if min(in_features, out_features, hidden_features) < 1:
            raise ValueError(
                f"in_features={in_features}, out_features={out_features} and "
                f"hidden_features={hidden_features} must each be 1 or more."
            )
        super().__init__(nn.Linear(in_features, hidden_features), nn.GELU(), nn.Linear(hidden_features, out_features))


class PyramidPool(nn.Module):
    """The levels of a pyramid, each averaged over its positions, concatenated, then one linear layer.

    A sequence of maps ``[B, channels_i, H_i, W_i]`` -> ``[B, out_features]``.
    """

    def __init__(self, channels: Sequence[int], out_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(sum(channels), out_features)

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        """Pool and classify."""
        return self.linear(torch.cat([level.mean((-2, -1)) for level in pyramid], 1))
