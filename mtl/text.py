"""A backbone of texts: an encoder of the transformers library, from a local folder or with random weights."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtl.errors import first_line, require, suggestion

log = logging.getLogger(__name__)

POOLS = ("mean", "cls", "pooler", "none")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
OF_BERTS_KIND = ("bert", "roberta", "xlm-roberta", "camembert")  # an embedding under encoder.layer
SPARE = 0.9  # of an embedding's rows: encoders round them up, and a smaller tokenizer is another model's


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
        transformers = _transformers()
        if config is not None:
            own = transformers.AutoConfig.for_model(**config)
        elif path is not None:
            own = _read_config(transformers, path)
        else:
            own = _small_bert(transformers, vocabulary, context, width, depth, num_heads)
        for name, value in (options or {}).items():
            if not hasattr(own, name):
                raise ValueError(
                    f"options.{name} is no setting of a {own.model_type}; {suggestion(name, own.to_dict())}."
                )
            setattr(own, name, value)
        own.use_cache = False  # of a decoder's keys and values
        self.config: dict[str, Any] = json.loads(own.to_json_string())
        if path is not None and pretrained and config is None:
            self.model: Any = _load(transformers, path, own)
        else:
            self.model = _random(transformers, own)
        pooler = getattr(self.model, "pooler", None)
        if pool == "pooler" and pooler is None:
            raise ValueError(f"pool=pooler: a {own.model_type} has no pooler; use mean or cls.")
        if pooler is not None:
            self.model.pooler = None  # otherwise it would run, and have parameters that nothing trains
        self.read = Pool(pool, pooler if pool == "pooler" else None)
        where = "the encoder" if path is None else f"the encoder in {path}"
        _check_sizes(where, own.vocab_size, _positions(self.model), vocabulary, context)
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


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ValueError(
            "backbone=text needs the extra text, as in pip install 'mtl[text]': there is no package transformers."
        ) from error
    return transformers


# --------------------------------------------------------------------------------------------- configuration


def _read_config(transformers: Any, path: str) -> Any:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise ValueError(
            f"path={path}: there is no folder {folder.absolute()}; give one with an encoder as transformers' "
            "save_pretrained writes it, for nothing is downloaded."
        )
    if not (folder / "config.json").is_file():
        raise ValueError(f"path={path}: {folder.absolute()} has no config.json; it must be that of an encoder.")
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise ValueError(f"path={path}: {folder / 'config.json'} cannot be read: {first_line(error)}") from error
    if config.is_encoder_decoder or not hasattr(config, "vocab_size"):
        raise ValueError(f"path={path} has a {config.model_type}, which is no encoder of texts; use one as BERT is.")
    return config


def _small_bert(transformers: Any, vocabulary: int, context: int, width: int, depth: int, num_heads: int) -> Any:
    if num_heads < 1 or width % num_heads:
        raise ValueError(f"width={width} must be a multiple of num_heads={num_heads}.")
    require("depth", depth, "1 or more", depth >= 1)
    log.warning(
        "backbone.path is open: the encoder of texts begins with random weights, %d layers of %d; a folder with a "
        "pretrained one knows the language already", depth, width,
    )  # fmt: skip
    return transformers.BertConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=num_heads,
        intermediate_size=4 * width,
        max_position_embeddings=context,
    )


def _check_sizes(where: str, known: int, positions: int | None, vocabulary: int, context: int) -> None:
    if vocabulary > known:
        raise ValueError(
            f"the tokenizer has {vocabulary} tokens, and {where} knows {known}; give data.tokenizer=… the one that "
            "belongs to it."
        )
    if vocabulary < SPARE * known:
        log.warning(
            "the tokenizer has %d tokens, and %s knows %d: the tokens of another tokenizer mean something else to it",
            vocabulary, where, known,
        )  # fmt: skip
    if positions is not None and context > positions:
        raise ValueError(
            f"the texts have up to {context} tokens, and {where} has {positions} positions; use data.length={positions}"
            " or less, at which longer texts are cut."
        )


def _positions(model: Any) -> int | None:
    """The most tokens that an encoder takes; None where its positions have no table."""
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    if isinstance(table, nn.Embedding):  # RoBERTa's first positions are the padding's
        return table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
    return getattr(model.config, "max_position_embeddings", None)


# --------------------------------------------------------------------------------------------------- weights


def _random(transformers: Any, config: Any) -> Any:
    with _quiet(transformers):
        return transformers.AutoModel.from_config(config, dtype=torch.float32)


def _load(transformers: Any, path: str, config: Any) -> Any:
    folder = Path(path).expanduser()
    if not any((folder / name).is_file() for name in WEIGHTS):
        raise ValueError(
            f"path={path}: {folder.absolute()} has no weights, as model.safetensors; backbone.pretrained=false starts "
            "from random ones."
        )
    try:
        with _quiet(transformers):
            model, report = transformers.AutoModel.from_pretrained(
                folder, config=config, local_files_only=True, dtype=torch.float32, output_loading_info=True
            )
    except Exception as error:
        raise ValueError(f"path={path}: the weights cannot be loaded: {first_line(error)}") from error
    missing, own = sorted(report["missing_keys"]), len(model.state_dict())
    if len(missing) == own:
        raise ValueError(f"path={path}: none of the weights there fits a {type(model).__name__}.")
    if missing:
        log.warning(
            "the weights in %s lack %d of the %d parameters of a %s, which stay random: %s",
            path, len(missing), own, type(model).__name__, ", ".join(missing[:3]),
        )  # fmt: skip
    return model


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without transformers' own progress bar and report: what matters in it is said here."""
    logging_ = transformers.utils.logging
    level, bar = logging_.get_verbosity(), logging_.is_progress_bar_enabled()
    logging_.set_verbosity_error()
    logging_.disable_progress_bar()
    try:
        yield
    finally:
        logging_.set_verbosity(level)
        if bar:
            logging_.enable_progress_bar()
