"""Backbones: timm's models as shared trunks, and what timm lacks: for text, for tables, and the toy problem's point."""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import timm
import torch
from timm.data import resolve_model_data_config
from timm.layers import Format
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from mtl.errors import first_line

log = logging.getLogger(__name__)

FEATURES = ("pooled", "tokens", "pyramid")


class Timm(nn.Module):
    """A timm model by its name, without its classifier.

    ``features`` says what it returns: ``pooled`` is one vector ``[B, C]``, ``tokens`` the last layer's positions
    ``[B, N, C]`` (with the class token, where there is one), ``pyramid`` a list of maps ``[B, C_i, H_i, W_i]`` from
    fine to coarse; None is ``pooled``. ``in_channels`` and ``image_size``, a side or (height, width), are the data's.
    ``name`` may be of the hub or of a folder, as ``hf-hub:timm/resnet18.a1_in1k`` or ``local-dir:FOLDER``. ``options``
    goes to ``timm.create_model``, as ``out_indices``, which levels a pyramid has. Its ``checkpoint_path`` is a file of
    weights, which are then the pretrained ones: the classifier is left out, and the first layer fitted to
    ``in_channels``. A warning counts the parameters that the file lacks, or has too many.

    Raises ValueError for a name that timm does not have (with the closest ones), for weights that cannot be
    loaded or of which none fits, and for a kind of features that the model does not give.
    """

    def __init__(
        self,
        name: str,
        pretrained: bool = False,
        features: str | None = None,
        in_channels: int = 3,
        image_size: int | Sequence[int] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        features = features or "pooled"
        if features not in FEATURES:
            raise ValueError(f"features={features} must be one of {', '.join(FEATURES)}.")
        options = dict(options or {}, in_chans=in_channels)
        if image_size is not None and _has_fixed_input_size(name):
            options.setdefault("img_size", image_size)  # its position embedding has a size of its own
        self.features, self._in_channels = features, in_channels
        self.model: Any = _create(name, pretrained, features, options)  # timm's models have more than nn.Module

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        """Images ``[B, C, H, W]`` to the features."""
        if self.features == "pooled":
            vector = self.model(images)
            if vector.dim() != 2:
                raise ValueError(
                    f"features=pooled: this model gives {list(vector.shape)}, not one vector an image; use tokens."
                )
            return vector
        if self.features == "tokens":
            return as_tokens(self.model.forward_features(images), self.last_axis_is_channels)
        return [as_map(level, self.last_axis_is_channels) for level in self.model(images)]

    @property
    def feature_info(self) -> dict[str, Any]:
        """What heads may ask for beside what the features themselves show."""
        return {"reductions": list(self.model.feature_info.reduction())} if self.features == "pyramid" else {}

    @property
    def data_config(self) -> dict[str, Any] | None:
        """Mean and deviation of the pixels for which the weights were made, whether they are loaded or not.

        None where the inputs have not three channels. Size, crop and interpolation are the data set's own.
        """
        config = resolve_model_data_config(self.model)
        return {key: list(config[key]) for key in ("mean", "std")} if self._in_channels == 3 else None

    @property
    def last_axis_is_channels(self) -> bool:
        """Whether the model's own maps are ``[B, H, W, C]``."""
        return Format(getattr(self.model, "output_fmt", Format.NCHW)) == Format.NHWC


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


def _has_fixed_input_size(name: str) -> bool:
    """Whether the model has parameters for each place of the image; ValueError for a name that timm does not have."""
    if ":" in name:  # of the hub or of a folder, whose configuration timm reads
        try:
            with torch.device("meta"):
                return bool(timm.create_model(name).pretrained_cfg.get("fixed_input_size"))
        except Exception as error:
            raise ValueError(f"name={name} cannot be made by timm: {_reason(error)}") from error
    if not timm.is_model(name.split(".")[0]):
        close = difflib.get_close_matches(name, timm.list_models(), n=4)
        raise ValueError(f"name={name} is no timm model; the closest are {', '.join(close) or 'none'}.")
    config = timm.get_pretrained_cfg(name)
    return config is not None and bool(config.fixed_input_size)


def _create(name: str, pretrained: bool, features: str, options: dict[str, Any]) -> nn.Module:
    if features == "pyramid":
        options["features_only"] = True
    else:
        options["num_classes"] = 0
    if (file := options.pop("checkpoint_path", None)) is not None:
        # As pretrained weights, for timm's checkpoint_path fits neither a model without its classifier nor a pyramid.
        own = {**(options.get("pretrained_cfg_overlay") or {}), "file": str(file), "source": ""}
        options["pretrained_cfg_overlay"], pretrained = own, True
    file = (options.get("pretrained_cfg_overlay") or {}).get("file")
    if pretrained and file is not None and not Path(file).is_file():
        raise ValueError(f"the weights of {name} are to come from {file}, which is no file.")
    try:
        with _recorded_loads() as loads:
            model = timm.create_model(name, pretrained=pretrained, **options)
    except Exception as error:
        raise _creation_error(error, name, pretrained, file, features, options) from error
    if pretrained:
        _check_loads(loads, file or f"the pretrained weights of {name}", name)
    return model


def _creation_error(
    error: Exception, name: str, pretrained: bool, file: str | None, features: str, options: Mapping[str, Any]
) -> ValueError:
    """What was wrong: the weights, the kind of features, or an option."""
    reason = _reason(error)
    if pretrained and _can_be_made(name, options):  # then the weights are what is wrong
        if file is not None:
            return ValueError(f"the weights in {file} cannot be loaded into {name}: {reason}")
        return ValueError(
            f"pretrained=true: the weights of {name} could not be loaded ({reason}); "
            "pretrained=false starts from random ones."
        )
    if features == "pyramid" and _can_be_made(name, {k: v for k, v in options.items() if k != "features_only"}):
        return ValueError(f"features=pyramid is not given by timm's {name} ({reason}); use pooled or tokens.")
    return ValueError(f"timm cannot make {name} with {options}: {reason}")


def _reason(error: Exception) -> str:
    """The first line of an error, or the first of the mismatches that torch lists below it."""
    lines = str(error).split("\n")
    if len(lines) > 1 and lines[0].startswith("Error(s) in loading state_dict"):
        more = f" (and {len(lines) - 2} more)" if len(lines) > 2 else ""
        return lines[1].strip() + more
    return first_line(error)


Load = tuple[nn.Module, list[str], list[str]]  # a model, and the keys that the weights lack and have too many


@contextmanager
def _recorded_loads() -> Iterator[list[Load]]:
    """The state dicts that are loaded inside the context: timm does not return which keys fitted."""
    loads: list[Load] = []
    original = nn.Module.load_state_dict

    def record(module: nn.Module, *arguments: Any, **named: Any) -> Any:
        result = original(module, *arguments, **named)
        loads.append((module, list(result.missing_keys), list(result.unexpected_keys)))
        return result

    with patch.object(nn.Module, "load_state_dict", record):
        yield loads


def _check_loads(loads: Sequence[Load], source: str, name: str) -> None:
    """ValueError if no key of the weights fitted; a warning if some were missing or left over."""
    for module, missing, left_over in loads[-1:]:  # a format of its own, loaded otherwise, is not recorded
        named = (getattr(module, "pretrained_cfg", None) or {}).get("classifier") or ()
        classifier = tuple(f"{part}." for part in ([named] if isinstance(named, str) else named))
        # torch takes a missing count of batches for 0.
        own = [key for key in module.state_dict() if not key.startswith(classifier) and "num_batches" not in key]
        missing = [key for key in missing if key in own]
        if own and len(missing) == len(own):
            raise ValueError(
                f"none of the keys in {source} fits {name}: they are {_few(left_over)}, but it has {_few(own)}."
            )
        if missing:
            log.warning(
                "%s lack %d of the %d parameters of %s, which stay random: %s",
                source, len(missing), len(own), name, _few(missing),
            )  # fmt: skip
        if left_over:
            log.warning("%s have %d keys that %s lacks: %s", source, len(left_over), name, _few(left_over))


def _few(keys: Sequence[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def _can_be_made(name: str, options: Mapping[str, Any]) -> bool:
    try:
        with torch.device("meta"):
            timm.create_model(name, **options)
    except Exception:
        return False
    return True


def as_tokens(features: Tensor, last_axis_is_channels: bool) -> Tensor:
    """Maps ``[B, C, H, W]`` or ``[B, H, W, C]`` to ``[B, H*W, C]``; tokens stay."""
    if not isinstance(features, Tensor):
        raise ValueError(f"features=tokens: this model gives a {type(features).__name__}; use pooled or pyramid.")
    if features.dim() != 4:
        return features
    return features.flatten(1, 2) if last_axis_is_channels else features.flatten(2).transpose(1, 2)


def as_map(features: Tensor, last_axis_is_channels: bool) -> Tensor:
    """Maps as ``[B, C, H, W]``."""
    return features.permute(0, 3, 1, 2) if last_axis_is_channels else features
