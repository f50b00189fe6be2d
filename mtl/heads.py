"""Heads that torch and timm lack. Any ``nn.Module`` that maps the features to a prediction is a head.

A class may say with ``reads`` which kind of features it needs; a backbone whose configuration leaves ``features`` open
then gives that kind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from timm.layers import AttentionPoolLatent
from torch import Tensor, nn
from torch.nn.functional import interpolate, relu
from torchvision.models.segmentation.deeplabv3 import ASPP
from torchvision.ops import FeaturePyramidNetwork

from mtl.backbones import CausalBlock, ResidualMLP

GROUPS = 8  # of the dense heads' normalisation


class MLP(nn.Sequential):
    """One hidden layer: ``[..., in_features]`` -> ``[..., out_features]``."""

    def __init__(self, in_features: int, out_features: int, hidden_features: int = 256) -> None:
        if min(in_features, out_features, hidden_features) < 1:
            raise ValueError(
                f"in_features={in_features}, out_features={out_features} and "
                f"hidden_features={hidden_features} must each be 1 or more."
            )
        super().__init__(nn.Linear(in_features, hidden_features), nn.GELU(), nn.Linear(hidden_features, out_features))


class AttentionPool(AttentionPoolLatent):
    """timm's attention pooling with one learned query, which leaves padding out: tokens -> ``[B, out_features]``.

    Tokens are ``[B, T, in_features]``, or ``{"tokens": [B, T, in_features], "mask": [B, T]}``, where ``mask`` is false
    for padding. ValueError where ``in_features`` is no multiple of ``num_heads``.
    """

    reads = "tokens"

    def __init__(self, in_features: int, out_features: int, num_heads: int = 4) -> None:
        if num_heads < 1 or in_features % num_heads:
            raise ValueError(f"num_heads={num_heads} must divide in_features={in_features}.")
        super().__init__(in_features, out_features, num_heads=num_heads)

    def forward(self, features: Tensor | Mapping[str, Tensor]) -> Tensor:
        """Pool and predict."""
        if isinstance(features, Tensor):
            return super().forward(features)
        return super().forward(features["tokens"], attn_mask=features["mask"][:, None, None, :])


class PyramidPool(nn.Module):
    """The levels of a pyramid, each averaged over its positions, concatenated, then one linear layer.

    A sequence of maps ``[B, channels_i, H_i, W_i]`` -> ``[B, out_features]``.
    """

    reads = "pyramid"

    def __init__(self, channels: Sequence[int], out_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(sum(channels), out_features)

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        """Pool and classify."""
        return self.linear(torch.cat([level.mean((-2, -1)) for level in pyramid], 1))


class FPN(nn.Module):
    """A feature pyramid network with a dense prediction: maps from fine to coarse -> ``[B, out_channels, H, W]``.

    The levels, maps ``[B, channels_i, H_i, W_i]`` of any sizes, are brought to ``width`` channels and merged from
    coarse to fine; what comes of each is rectified, and their sum at the size of the first one is predicted from. The
    output is resized to ``image_size``, a side or (height, width). Of a backbone that says how its levels are reduced,
    those finer than ``stride`` are left out: 4 is the papers', 2 also takes the stem of a ResNet.

    All normalisation is over groups of channels: a sample does not depend on the others in its batch, which may be one.
    ValueError for a ``width`` that is no multiple of 8.

    Source: Lin et al. 2017 (FPN), with the semantic branch of Kirillov et al. 2019 (Panoptic FPN) with one convolution
    a level.
    """

    reads = "pyramid"

    def __init__(
        self,
        channels: Sequence[int],
        out_channels: int,
        image_size: int | Sequence[int],
        width: int = 128,
        stride: int = 4,
        reductions: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.image_size, self.first = _height_and_width(image_size), _first_level(reductions, stride)
        self.pyramid = FeaturePyramidNetwork(list(channels[self.first :]), width, norm_layer=_group_norm)
        self.predict = nn.Conv2d(width, out_channels, 1)

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        """Merge and predict."""
        finest, *coarser = self.pyramid({str(i): level for i, level in enumerate(pyramid[self.first :])}).values()
        merged = relu(finest)
        for level in coarser:
            merged = merged + _resized(relu(level), merged.shape[-2:])
        return _resized(self.predict(merged), self.image_size)


class DeepLab(nn.Module):
    """DeepLabV3+'s head on a pyramid: maps from fine to coarse -> ``[B, out_channels, H, W]``.

    Atrous spatial pyramid pooling with ``rates`` and ``width`` channels on the last map, then its result at the size of
    the first map beside ``low_channels`` channels of that one, two convolutions, and the output resized to
    ``image_size``, a side or (height, width). The first map is, of a backbone that says how its maps are reduced, the
    first that is not finer than ``stride``, the paper's 4. ``low_channels=0``: one convolution on the last map's result
    alone, which is DeepLabV3's head.

    Dropout is the published 0.5, after the pooling. Normalisation is over groups of channels where the paper's is over
    the batch, so that a batch of one works. ValueError for a ``width`` or ``low_channels`` that is no multiple of 8.

    Source: Chen et al. 2018 (DeepLabV3+), section 3. The paper's last map has a stride of 8 or 16: with timm's ResNets
    ``backbone.options.output_stride=8``.
    """

    reads = "pyramid"

    def __init__(
        self,
        channels: Sequence[int],
        out_channels: int,
        image_size: int | Sequence[int],
        width: int = 256,
        low_channels: int = 48,
        rates: Sequence[int] = (6, 12, 18),
        stride: int = 4,
        reductions: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.image_size, self.first = _height_and_width(image_size), _first_level(reductions, stride)
        self.aspp = _with_group_norms(ASPP(channels[-1], rates, width))
        self.low = _convolution(channels[self.first], low_channels, 1) if low_channels else None
        convolutions = [_convolution(width + low_channels, width, 3)]
        if low_channels:
            convolutions.append(_convolution(width, width, 3))
        self.predict = nn.Sequential(*convolutions, nn.Conv2d(width, out_channels, 1))

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        """Pool, refine and predict."""
        features = self.aspp(pyramid[-1])
        if self.low is not None:
            low = self.low(pyramid[self.first])
            features = torch.cat([_resized(features, low.shape[-2:]), low], 1)
        return _resized(self.predict(features), self.image_size)


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


def _resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    return interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


def _height_and_width(image_size: int | Sequence[int]) -> tuple[int, int]:
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    return height, width


def _first_level(reductions: Sequence[int] | None, stride: int) -> int:
    return next((i for i, reduction in enumerate(reductions or ()) if reduction >= stride), 0)


def _convolution(in_channels: int, out_channels: int, kernel: int) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, _group_norm(out_channels), nn.ReLU())


def _group_norm(channels: int) -> nn.GroupNorm:
    if channels % GROUPS:
        raise ValueError(f"width and low_channels must be multiples of {GROUPS}, and {channels} is not.")
    return nn.GroupNorm(GROUPS, channels)


def _with_group_norms(module: nn.Module) -> nn.Module:
    for name, part in list(module.named_modules()):
        if isinstance(part, nn.BatchNorm2d):
            module.set_submodule(name, _group_norm(part.num_features))
    return module
