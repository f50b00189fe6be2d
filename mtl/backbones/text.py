"""A backbone of texts: an encoder of the transformers library, from a local folder or with random weights."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mtl.backbones.encoders import make_encoder
from mtl.backbones.tabular import Tabular
from mtl.errors import require

log = logging.getLogger(__name__)

POOLS = ("mean", "cls", "pooler", "none")
OF_BERTS_KIND = ("bert", "roberta", "xlm-roberta", "camembert")  # an embedding under encoder.layer


class Text(nn.Module):
    """An encoder of texts: ``{"tokens": int64 [B, T], "mask": bool [B, T]}`` -> the features.

    ``path`` is a folder as transformers' ``save_pretrained`` writes it; nothing is ever downloaded. Without one, the
    encoder is a BERT with random weights, of ``width``, ``depth`` and ``num_heads``. ``pretrained=False`` takes the
    folder's configuration with random weights. ``options`` replaces values of the encoder's configuration, as
    ``hidden_dropout_prob``.

    ``pool`` says what it returns: ``mean`` over the tokens that are no padding, ``cls``, the first token, or
    ``pooler``, the encoder's own layer on the first token, each ``[B, D]``; ``none``, which heads that read tokens ask
    for by ``features``, gives ``{"tokens": [B, T, D], "mask": [B, T]}``. ``vocabulary`` and ``context``, the most
    tokens of a text, are the data's. Inputs with ``segments`` [B, T], the text of each token of a pair, hand them to
    the encoder. Of a table's inputs the part ``text`` is read.

    ``config`` is what a checkpoint carries, so that the encoder is built without its folder.

    Raises ValueError for a folder without configuration or weights, an encoder-decoder, a tokenizer with more tokens
    than the encoder knows, and texts longer than its positions. Source: Devlin et al. 2019; the mean is that of Reimers
    and Gurevych 2019 (Sentence-BERT).
    """

    reads_text = True

    def __init__(
        self,
        vocabulary: int,
        context: int,
        path: str | None = None,
        pretrained: bool = True,
        pool: str = "mean",
        features: str | None = None,
        width: int = 128,
        depth: int = 2,
        num_heads: int = 2,
        options: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        numbers: int = 0,
        categories: Sequence[int] = (),
    ) -> None:
        super().__init__()
        pool = _chosen(pool, features)
        sizes = {"width": width, "depth": depth, "num_heads": num_heads}
        self.model = make_encoder(vocabulary, context, path, pretrained, sizes, options or {}, config)
        self.config: dict[str, Any] = json.loads(self.model.config.to_json_string())
        pooler = getattr(self.model, "pooler", None)
        if pool == "pooler" and pooler is None:
            raise ValueError(f"pool=pooler: a {self.config['model_type']} has no pooler; use mean or cls.")
        if pooler is not None:
            self.model.pooler = None  # otherwise it would run, and have parameters that nothing trains
        self.read = Pool(pool, pooler if pool == "pooler" else None)
        if numbers or categories:
            log.warning(
                "backbone=text reads the text alone: the table's %d numbers and %d categories are left out; "
                "backbone=table_text reads all of them", numbers, len(categories),
            )  # fmt: skip

    def forward(self, inputs: Mapping[str, Any]) -> Tensor | dict[str, Tensor]:
        """The features of a batch of texts."""
        text = inputs.get("text", inputs)
        segments = _segments(text) if self._reads_segments else {}
        output = self.model(input_ids=text["tokens"], attention_mask=text["mask"], **segments)
        return self.read({"tokens": output.last_hidden_state, "mask": text["mask"]})

    @property
    def first_expert_stage(self) -> int:
        """Experts of a mixture share the first stage, and gates read what comes of it, where there are stages."""
        return int(self.config["model_type"] in OF_BERTS_KIND)

    def parts(self) -> tuple[Embedding, list[Layer]] | None:
        """Embedding and layers, one after the other the encoder; None for one that is not of BERT's kind."""
        if self.config["model_type"] not in OF_BERTS_KIND:
            return None
        layers = [Layer(layer, self.model.config) for layer in self.model.encoder.layer]
        return Embedding(self.model.embeddings, self._reads_segments), layers

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the layers' activations during the backward pass; ValueError for an encoder that cannot."""
        if not self.model.supports_gradient_checkpointing:
            name = type(self.model).__name__
            raise ValueError(f"trainer.grad_checkpointing=true: transformers' {name} has no activation checkpointing.")
        if enable:
            self.model.activation_checkpointing_enable({"use_reentrant": False})
        else:
            self.model.activation_checkpointing_disable()

    @property
    def _reads_segments(self) -> bool:
        return getattr(self.model.config, "type_vocab_size", 0) > 1


class TableText(nn.Module):
    """For rows of a table with free text: the text's vector is among the numbers of a Tabular; -> ``[B, hidden[-1]]``.

    ``numbers``, ``categories``, ``hidden``, ``dropout`` and ``embedding`` are those of mtl.backbones.Tabular, and the
    others those of Text.
    """

    reads_text = True

    def __init__(
        self,
        vocabulary: int,
        context: int,
        numbers: int,
        categories: Sequence[int],
        path: str | None = None,
        pretrained: bool = True,
        pool: Literal["mean", "cls", "pooler"] = "mean",
        hidden: Sequence[int] = (256, 128),
        dropout: float = 0.0,
        embedding: int | Sequence[int] | None = None,
        width: int = 128,
        depth: int = 2,
        num_heads: int = 2,
        options: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.text = Text(vocabulary, context, path, pretrained, pool, None, width, depth, num_heads, options, config)
        self.config = self.text.config
        self.tabular = Tabular(numbers + self.text.model.config.hidden_size, categories, hidden, dropout, embedding)

    def forward(self, inputs: Mapping[str, Any]) -> Tensor:
        """The features of a batch of rows."""
        numbers = torch.cat([inputs["numbers"], self.text(inputs)], 1)
        return self.tabular({"numbers": numbers, "categories": inputs["categories"]})


class Embedding(nn.Module):
    """The embedding of a batch of texts, with its mask: ``{"tokens": [B, T, D], "mask": [B, T]}``."""

    def __init__(self, embeddings: nn.Module, reads_segments: bool) -> None:
        super().__init__()
        self.embeddings, self._reads_segments = embeddings, reads_segments

    def forward(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """What the first layer reads."""
        text = inputs.get("text", inputs)
        segments = _segments(text) if self._reads_segments else {}
        return {"tokens": self.embeddings(input_ids=text["tokens"], **segments), "mask": text["mask"]}


class Layer(nn.Module):
    """A layer of an encoder of BERT's kind, between texts of the form that Embedding gives."""

    def __init__(self, layer: nn.Module, config: Any) -> None:
        super().__init__()
        self.layer, self._config = layer, config

    def forward(self, text: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The layer's output, under the same mask."""
        from transformers.masking_utils import create_bidirectional_mask

        own = create_bidirectional_mask(self._config, inputs_embeds=text["tokens"], attention_mask=text["mask"])
        return {"tokens": self.layer(text["tokens"], own), "mask": text["mask"]}


class Pool(nn.Module):
    """The last layer's tokens as the features of a text, see Text."""

    def __init__(self, pool: str, pooler: nn.Module | None) -> None:
        super().__init__()
        self.pool, self.pooler = pool, pooler

    def forward(self, text: Mapping[str, Tensor]) -> Tensor | dict[str, Tensor]:
        """One vector a text, or its tokens with their mask."""
        tokens = text["tokens"]
        if self.pool == "none":
            return dict(text)
        if self.pool == "mean":
            return masked_mean(tokens, text["mask"])
        return tokens[:, 0] if self.pooler is None else self.pooler(tokens)


def _segments(text: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {"token_type_ids": text["segments"]} if "segments" in text else {}


def masked_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """The mean over the positions of ``mask`` [B, T]: ``[B, T, D]`` -> ``[B, D]``; zero where there is none."""
    chosen = mask.unsqueeze(-1).to(tokens.dtype)
    return (tokens * chosen).sum(1) / chosen.sum(1).clamp(min=1)


def _chosen(pool: str, features: str | None) -> str:
    require("pool", pool, f"one of {', '.join(POOLS)}", pool in POOLS)
    require("features", features, "null, pooled or tokens", features in (None, "pooled", "tokens"))
    if features == "pooled" and pool == "none":
        raise ValueError("pool=none gives tokens, and features=pooled asks for one vector a text; use pool=mean.")
    return "none" if features == "tokens" else pool
