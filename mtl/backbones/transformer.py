"""A small GPT for tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class CausalTransformer(nn.Module):
    """A small GPT: token ids ``[B, T]`` -> features ``[B, T, width]``, those at a place from the tokens up to it alone.

    Token and learned position embeddings, ``depth`` blocks, a last layer norm. ``vocabulary`` and ``context``, the most
    tokens it takes at once, are the data's.

    Source: Radford et al. 2019 (GPT-2), without dropout; the trunk of Gloeckle et al. 2024.
    """

    def __init__(self, vocabulary: int, context: int, width: int = 128, depth: int = 2, num_heads: int = 4) -> None:
        super().__init__()
        self.feature_info = {"vocabulary": vocabulary}
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.empty(context, width))
        self.blocks = nn.Sequential(*(CausalBlock(width, num_heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        for embedding in (self.tokens.weight, self.positions):
            nn.init.normal_(embedding, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed and contextualise; ValueError for more tokens than ``context``."""
        if tokens.shape[1] > len(self.positions):
            raise ValueError(f"{tokens.shape[1]} tokens are more than context={len(self.positions)}.")
        return self.norm(self.blocks(self.tokens(tokens) + self.positions[: tokens.shape[1]]))


class CausalBlock(nn.Module):
    """A transformer layer, norms first: causal self-attention, then a residual MLP. ``[B, T, width]`` -> the same."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        if num_heads < 1 or width % num_heads:
            raise ValueError(f"width={width} must be a multiple of num_heads={num_heads}.")
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = ResidualMLP(width)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the positions, then the channels."""
        q, k, v = (
            self.qkv(self.norm(x)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        )  # [B, H, T, D / H]
        mixed = scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.mlp(x + self.out(mixed.transpose(1, 2).flatten(2)))


class ResidualMLP(nn.Sequential):
    """``x + MLP(norm(x))``, four times as wide inside: ``[..., width]`` -> the same."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Every position by itself."""
        return x + super().forward(x)
