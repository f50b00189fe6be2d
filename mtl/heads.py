"""Heads. Any ``nn.Module`` that maps the features to a prediction is one; these are what torch and timm lack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from mtl.backbones import CausalBlock, ResidualMLP


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


class NextToken(nn.Module):
    """The logits of a future token: ``[B, T, in_features]`` -> ``[B, T, vocabulary]``.

    A ``layer`` of the head's own (``mlp``: a residual MLP; ``transformer``: a transformer layer, causal, with
    ``num_heads`` attention heads), a norm, and the unembedding, without bias. The paper's heads are transformer layers
    under one common unembedding: ``layer=transformer``, and ``share=[unembedding]`` in the configuration. With token
    chunks a transformer layer still runs on all positions at once.

    Source: Gloeckle et al. 2024, section 2.
    """

    def __init__(
        self, in_features: int, vocabulary: int, layer: Literal["mlp", "transformer"] = "mlp", num_heads: int = 4
    ) -> None:
        super().__init__()
        self.layer = ResidualMLP(in_features) if layer == "mlp" else CausalBlock(in_features, num_heads)
        self.norm = nn.LayerNorm(in_features)
        self.unembedding = nn.Linear(in_features, vocabulary, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Layer, norm, unembedding."""
        return self.read(self.mix(features))

    def mix(self, features: Tensor) -> Tensor:
        """What mixes the positions."""
        return self.layer(features) if isinstance(self.layer, CausalBlock) else features

    def read(self, mixed: Tensor) -> Tensor:
        """What comes after: every position by itself."""
        if not isinstance(self.layer, CausalBlock):
            mixed = self.layer(mixed)
        return self.unembedding(self.norm(mixed))
