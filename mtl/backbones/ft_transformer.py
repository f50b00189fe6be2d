from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtl.errors import require

MOST_BLOCKS = 6  # that the authors have settings for


class FTTransformer(nn.Sequential):
    """FT-Transformer, for the rows of a table: ``numbers`` ``[B, p]`` and ``categories`` ``[B, q]`` -> ``[B, width]``.

    Every number and every category becomes a token, and the features are what ``blocks`` blocks of attention make of a
    further one. Width and dropout are the authors' for that number of blocks, from 1 (96) to 6 (384). ``numbers`` and
    ``categories``, how many numbers there are, and how many values each category has, are the data's. The authors train
    it with a learning rate of 1e-4 and a weight decay of 1e-5.

    The stages are two: tokens, and the blocks; see mtl.architectures.stages.

    Source: Gorishniy et al. 2021, "Revisiting Deep Learning Models for Tabular Data"; the layers are those of its
    authors' package, rtdl_revisiting_models. ValueError without it, and for another number of blocks.
    """

    first_expert_stage = 1  # experts of a mixture share the tokens, and gates read their mean

    def __init__(self, numbers: int, categories: Sequence[int], blocks: int = 3) -> None:
        require("blocks", blocks, f"from 1 to {MOST_BLOCKS}", blocks in range(1, MOST_BLOCKS + 1))
        made = _of_package(numbers, categories, blocks)
        tokens = Tokens(made.cls_embedding, made.cont_embeddings, made.cat_embeddings)
        super().__init__(tokens, made.backbone)


class Tokens(nn.Module):
    """A row as tokens ``[B, 1 + p + q, width]``: the one whose end is the features, the numbers, the categories."""

    def __init__(self, first: nn.Module, numbers: nn.Module | None, categories: nn.Module | None) -> None:
        super().__init__()
        self.first, self.numbers, self.categories = first, numbers, categories

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """What the first block reads."""
        tokens = [self.first((len(inputs["numbers"]),))]
        for name in ("numbers", "categories"):
            if (embed := getattr(self, name)) is not None:
                tokens.append(embed(inputs[name]))
        return torch.cat(tokens, 1)


def _of_package(numbers: int, categories: Sequence[int], blocks: int) -> Any:
    try:
        import rtdl_revisiting_models as package
    except ImportError as error:
        raise ValueError(
            "backbone=ft_transformer needs the extra tables, as in pip install 'mtl-torch[tables]': there is no "
            "package rtdl_revisiting_models."
        ) from error
    settings = package.FTTransformer.get_default_kwargs(blocks)
    return package.FTTransformer(n_cont_features=numbers, cat_cardinalities=list(categories), d_out=None, **settings)
