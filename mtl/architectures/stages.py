"""The stages of a backbone, for architectures that share some of them, mix them, or read from each."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from timm.models._features import FeatureListNet
from timm.models.convnext import ConvNeXt, ConvNeXtStage
from timm.models.resnet import ResNet
from timm.models.swin_transformer import SwinTransformer, SwinTransformerStage
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from mtl.backbones import MPNN, Text, Timm
from mtl.backbones.timm import as_map, as_tokens

QUARTERS = 4  # of a ViT's blocks
NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)  # they belong to the layer before
READS = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Flatten)  # at the end, what is made of the last stage's maps


class Stages(NamedTuple):
    """A backbone in parts: it returns ``read([x_1, …, x_J])`` with ``x_j = units[j](x_{j-1})``, x_0 the inputs.

    Each unit is the sequence of its blocks. ``last_axis_is_channels``: of maps; of vectors and tokens it always is.
    """

    units: list[nn.Sequential]
    read: nn.Module
    last_axis_is_channels: bool = False

    @property
    def reads_levels(self) -> bool:
        """Whether the features have the outputs of all stages."""
        return isinstance(self.read, Pyramid)


def channel_axis(x: Tensor, last_axis_is_channels: bool) -> int:
    """The axis of a unit's output that has its channels."""
    return 1 if x.dim() == 4 and not last_axis_is_channels else x.dim() - 1


def mix_states(unit: Callable[[list[Tensor]], Tensor], columns: Sequence[Any], own: int) -> Any:
    """``unit`` of the outputs of all columns; of states, of their tokens, and the rest is that of column ``own``."""
    if isinstance(columns[own], Mapping):
        return {**columns[own], "tokens": unit([state["tokens"] for state in columns])}
    return unit(list(columns))


def stages(backbone: nn.Module, states: bool = False) -> Stages:
    """The stages of a backbone, made of its own modules.

    - timm's ResNet, ConvNeXt and Swin: their four, the first with the stem; ViT: quarters of the blocks, the first with
      the embedding.
    - ``features=pyramid`` of any timm model that is a chain: a stage for each level.
    - ``backbone=text`` of BERT's kind: quarters of the layers, the first with the embedding.
    - ``backbone=mpnn``: embedding, rounds, and what reads the molecule.
    - ``torch.nn.Sequential``: each layer with parameters, and what follows it without; a normalisation follows, too.
      Pooling and flattening at the end read the last one.

    Between the stages of the last two are states, dicts of ``tokens``, their ``mask`` and what else belongs to them:
    only for those who say by ``states`` that they take them. ValueError for others, and for any other backbone.
    """
    if isinstance(backbone, Timm):
        return _of_timm(backbone)
    if isinstance(backbone, Text | MPNN) and not states:
        what = "texts" if isinstance(backbone, Text) else "molecules"
        raise ValueError(
            f"between the stages of backbone={type(backbone).__name__.lower()} are {what} with their mask, which this "
            "architecture does not take; use mmoe, cgc, omoe, dselect_k, ensemble, cross_stitch, ltb or film."
        )
    if isinstance(backbone, Text):
        return _of_text(backbone)
    if isinstance(backbone, nn.Sequential):
        return _of_sequential(backbone)
    raise _unknown(type(backbone).__name__)


class Last(nn.Sequential):
    """What its modules make of the last stage's output."""

    def forward(self, outputs: Sequence[Tensor]) -> Any:
        """The features of the backbone."""
        return super().forward(outputs[-1])


class Pyramid(nn.Module):
    """The outputs of all stages as maps ``[B, C, H, W]``."""

    def __init__(self, last_axis_is_channels: bool) -> None:
        super().__init__()
        self.last_axis_is_channels = last_axis_is_channels

    def forward(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """The features of the backbone."""
        return [as_map(x, self.last_axis_is_channels) for x in outputs]


# ---------------------------------------------------------------------------------------------------------- timm


def _of_timm(backbone: Timm) -> Stages:
    model, last = backbone.model, backbone.last_axis_is_channels
    if backbone.features == "pyramid":
        if not isinstance(model, FeatureListNet):
            raise _unknown(f"features=pyramid of timm's {_name(model)}")
        return Stages(_levels(model), Pyramid(last), last)
    if isinstance(model, ResNet):
        parts = [(model.conv1, model.bn1, model.act1, model.maxpool, model.layer1), (model.layer2,), (model.layer3,)]
        parts, norms = [*parts, (model.layer4,)], []
        head = [model.global_pool, nn.Dropout(model.drop_rate), model.fc]
    elif isinstance(model, ConvNeXt):
        parts, norms, head = _with_stem(model.stem, model.stages), [model.norm_pre], [model.head]
    elif isinstance(model, SwinTransformer):
        parts, norms, head = _with_stem(model.patch_embed, model.layers), [model.norm], [model.head]
    elif isinstance(model, VisionTransformer):
        parts, norms = _with_stem(_embedding(model), _quarters(model.blocks)), [model.norm]
        head = [Method(_alone(model, ("attn_pool", "fc_norm", "head_drop", "head")), "forward_head")]
    else:
        raise _unknown(f"timm's {type(model).__name__}")
    end = head if backbone.features == "pooled" else [AsTokens(last)]
    return Stages([nn.Sequential(*_blocks(part)) for part in parts], Last(*norms, *end), last)


class Method(nn.Module):
    """A method of a module as a module."""

    def __init__(self, module: nn.Module, method: str) -> None:
        super().__init__()
        self.module, self.method = module, method

    def forward(self, x: Any) -> Any:
        """What the method returns."""
        return getattr(self.module, self.method)(x)


class AsTokens(nn.Module):
    """Maps as tokens ``[B, N, C]``."""

    def __init__(self, last_axis_is_channels: bool) -> None:
        super().__init__()
        self.last_axis_is_channels = last_axis_is_channels

    def forward(self, x: Tensor) -> Tensor:
        """The same numbers."""
        return as_tokens(x, self.last_axis_is_channels)


def _with_stem(stem: nn.Module, parts: Iterable[nn.Module]) -> list[tuple[nn.Module, ...]]:
    first, *others = parts
    return [(stem, first), *((part,) for part in others)]


def _levels(model: FeatureListNet) -> list[nn.Sequential]:
    units, before = [], []
    for name, module in model.items():
        before.append(module)
        if name in model.return_layers:
            units.append(nn.Sequential(*_blocks(before)))
            before = []
    return units


def _blocks(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """The blocks in a row: sequences, and stages of timm that are nothing else, are taken apart."""
    flat: list[nn.Module] = []
    for module in modules:
        if type(module) is nn.Sequential:
            flat += _blocks(module)
        elif isinstance(module, ConvNeXtStage | SwinTransformerStage):
            flat += _blocks([module.downsample, *module.blocks])
        elif not isinstance(module, nn.Identity):
            flat.append(module)
    return flat


def _quarters(blocks: Sequence[nn.Module]) -> list[nn.Sequential]:
    count = min(QUARTERS, len(blocks))
    bounds = [len(blocks) * i // count for i in range(count + 1)]
    return [nn.Sequential(*blocks[first:end]) for first, end in pairwise(bounds)]


def _embedding(model: VisionTransformer) -> nn.Module:
    """All that comes before the blocks: class token, positions, and dropped patches."""
    own = _alone(model, ("patch_embed", "pos_drop", "patch_drop", "norm_pre", "cls_token", "reg_token", "pos_embed"))
    own.blocks = own.norm = nn.Identity()
    return Method(own, "forward_features")


def _alone(model: nn.Module, names: Collection[str]) -> Any:
    """The model with no submodule and no parameter but these, which stay the same objects."""
    own = copy.copy(model)
    for kind in ("_modules", "_parameters"):
        vars(own)[kind] = {name: value for name, value in vars(model)[kind].items() if name in names or value is None}
    vars(own)["set_grad_checkpointing"] = None  # it would reach nothing, without a word
    return own


def _name(model: Any) -> str:
    return type(getattr(model, "model", model)).__name__


# --------------------------------------------------------------------------------------------------------- texts


def _of_text(backbone: Text) -> Stages:
    if (parts := backbone.parts()) is None:
        raise _unknown(f"a {backbone.config['model_type']}")
    embedding, layers = parts
    first, *others = _quarters(layers)
    return Stages([nn.Sequential(embedding, *first), *others], Last(backbone.read))


# --------------------------------------------------------------------------------------------------- sequences


def _of_sequential(backbone: nn.Sequential) -> Stages:
    modules = list(backbone)
    end = len(modules)
    while end and isinstance(modules[end - 1], READS):
        end -= 1
    return Stages(_layers(modules[:end]), Last(*modules[end:]))


def _layers(modules: Sequence[nn.Module]) -> list[nn.Sequential]:
    layers: list[list[nn.Module]] = [[]]
    for module in modules:
        starts = any(True for _ in module.parameters()) and not isinstance(module, NORMS)
        if starts and any(any(True for _ in before.parameters()) for before in layers[-1]):
            layers.append([])
        layers[-1].append(module)
    return [nn.Sequential(*layer) for layer in layers]


def _unknown(what: str) -> ValueError:
    return ValueError(
        f"the stages of {what} are not known; use a timm ResNet, ConvNeXt, Swin or ViT, features=pyramid of a timm "
        "model that runs one module after the other, or a torch.nn.Sequential."
    )
