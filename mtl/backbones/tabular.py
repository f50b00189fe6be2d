"""An MLP for the rows of a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class Tabular(nn.Sequential):
    """An MLP for the rows of a table: ``numbers`` ``[B, p]`` and ``categories`` ``[B, q]`` -> ``[B, hidden[-1]]``.

    Every category has an embedding, and what these are beside the numbers goes through a linear layer, ReLU and
    ``dropout`` for each width in ``hidden``. ``numbers`` and ``categories``, how many numbers there are, and how many
    values each category has, are the data's. ``embedding`` is one size for all categories or one for each; None is
    ``min(50, ceil(1.6 v^0.56))`` for v values. ValueError for sizes below 1.

    Source: Guo & Berkhahn 2016 (entity embeddings); the sizes are those of fastai.
    """

    first_expert_stage = 1  # experts of a mixture share the embeddings, and gates read them

    def __init__(
        self,
        numbers: int,
        categories: Sequence[int],
        hidden: Sequence[int] = (256, 128),
        dropout: float = 0.0,
        embedding: int | Sequence[int] | None = None,
    ) -> None:
        if not hidden or min(hidden) < 1:
            raise ValueError(f"hidden={list(hidden)} must be one width or more, each 1 or more.")
        embed = Embed(categories, _embedding_sizes(categories, embedding))
        layers: list[nn.Module] = [embed]
        for before, width in pairwise([numbers + embed.width, *hidden]):
            layers += [nn.Linear(before, width), nn.ReLU(), *([nn.Dropout(dropout)] if dropout else [])]
        super().__init__(*layers)


class Embed(nn.Module):
    """The numbers of a row, and the embeddings of its categories: ``[B, p]`` and ``[B, q]`` -> ``[B, p + sizes]``.

    The embedding of a value that no training row has, 0, begins at zero, as nothing else will teach it.
    """

    def __init__(self, categories: Sequence[int], sizes: Sequence[int]) -> None:
        super().__init__()
        self.width = sum(sizes)
        self.embeddings = nn.ModuleList(nn.Embedding(v, size) for v, size in zip(categories, sizes, strict=True))
        with torch.no_grad():
            for embedding in self.embeddings:
                embedding.weight[0] = 0.0  # type: ignore[operator]

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """What the first layer reads."""
        codes = inputs["categories"]
        own = [embedding(codes[:, i]) for i, embedding in enumerate(self.embeddings)]
        return torch.cat([inputs["numbers"], *own], 1)


def _embedding_sizes(categories: Sequence[int], embedding: int | Sequence[int] | None) -> list[int]:
    if embedding is None:
        return [min(50, math.ceil(1.6 * v**0.56)) for v in categories]
    sizes = [embedding] * len(categories) if isinstance(embedding, int) else list(embedding)
    if len(sizes) != len(categories) or min(sizes, default=1) < 1:
        raise ValueError(
            f"embedding={embedding} must be 1 or more, or a list of such sizes, one for each of {len(categories)} "
            "categories."
        )
    return sizes
