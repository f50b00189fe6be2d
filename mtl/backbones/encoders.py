"""An encoder of the transformers library: its configuration and weights, from a local folder or without one.

transformers is imported where it is needed, and handed on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mtl.errors import first_line, require, suggestion

log = logging.getLogger(__name__)

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
SPARE = 0.9  # of an embedding's rows: encoders round them up, and a smaller tokenizer is another model's


def make_encoder(
    vocabulary: int,
    context: int,
    path: str | None,
    pretrained: bool,
    sizes: Mapping[str, int],
    options: Mapping[str, Any],
    config: Mapping[str, Any] | None,
) -> Any:
    """The encoder of mtl.backbones.Text, which says what its arguments are; ``sizes`` are those of a small BERT."""
    transformers = _transformers()
    if config is not None:
        own = transformers.AutoConfig.for_model(**config)
    elif path is not None:
        own = _read_config(transformers, path)
    else:
        own = _small_bert(transformers, vocabulary, context, **sizes)
    for name, value in options.items():
        if not hasattr(own, name):
            raise ValueError(f"options.{name} is no setting of a {own.model_type}; {suggestion(name, own.to_dict())}.")
        setattr(own, name, value)
    own.use_cache = False  # of a decoder's keys and values
    if path is not None and pretrained and config is None:
        model = _load(transformers, path, own)
    else:
        model = _random(transformers, own)
    _check_sizes("the encoder" if path is None else f"the encoder in {path}", model, vocabulary, context)
    return model


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ValueError(
            "backbone=text needs the extra text, as in pip install 'mtl-torch[text]': there is no package transformers."
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


def _check_sizes(where: str, model: Any, vocabulary: int, context: int) -> None:
    known, positions = model.config.vocab_size, _positions(model)
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
