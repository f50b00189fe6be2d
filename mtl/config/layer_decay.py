"""Layer-wise decay of the learning rate, and weight decay for matrices alone: the groups of an optimizer, split."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from timm.models._manipulate import group_with_matcher
from torch import nn

from mtl.architectures.stages import stages
from mtl.backbones import Timm
from mtl.errors import ConfigError
from mtl.members import plain_names
from mtl.model import MultiTaskModel

Layers = dict[nn.Parameter, tuple[int, int]]  # of a parameter its layer, and how many there are above it


def split_groups(groups: Sequence[Mapping[str, Any]], node: Any, model: MultiTaskModel) -> list[dict[str, Any]]:
    """The groups of an optimizer, split by layer with ``layer_decay``, and by ``weight_decay_exclude_1d``.

    Layer l of L has ``lr_scale``, layer_decay^(L - l), by which its group's learning rate is to be multiplied; the
    heads, whose place is above the last layer, have 1. Layers are those of the backbone's own ``group_matcher``, which
    timm's models have, else its stages. Of parameters with one axis or none, of biases, and of those that a module's
    ``no_weight_decay`` names, the weight decay is 0.

    Source: ELECTRA's layer-wise decay (Clark et al. 2020) as in BEiT and timm.optim.param_groups_layer_decay.
    ConfigError for a backbone without layers.
    """
    decay = node.get("layer_decay")
    layers = {} if decay is None else _layers(model.backbone, decay)
    excluded = _without_weight_decay(model) if node.get("weight_decay_exclude_1d") else set()
    found = []
    for group in groups:
        parts: dict[Any, list[nn.Parameter]] = {}
        for p in group["params"]:
            parts.setdefault((layers.get(p), p in excluded), []).append(p)
        for (layer, is_excluded), params in parts.items():
            own = {**group, "params": params}
            if layer is not None:
                own |= {"name": f"{group['name']}.layer_{layer[0]}", "lr_scale": decay ** layer[1]}
            found.append(own | ({"weight_decay": 0.0} if is_excluded else {}))
    return found


def scale_rates(optimizer: torch.optim.Optimizer) -> None:
    """Multiply the learning rate of every group by its ``lr_scale``, once: a schedule then starts from it."""
    for group in optimizer.param_groups:
        if (scale := group.pop("lr_scale", None)) is None:
            continue
        if not isinstance(group.get("lr"), int | float):
            raise ConfigError(f"optimizer.layer_decay: {type(optimizer).__name__} needs optimizer.lr, a number.")
        group["lr"] *= scale


def _layers(backbone: nn.Module, decay: float) -> Layers:
    found: Layers = {}
    matched = list(_outermost_with_matcher(backbone))
    for module in matched:
        found |= _matched(module)
    if not matched:
        made: list[nn.Module] = [m for m in backbone.modules() if isinstance(m, Timm)]
        for module in made or [backbone]:
            try:
                units = stages(module).units
            except ValueError as error:
                raise ConfigError(f"optimizer.layer_decay={decay}: {error}") from error
            found |= {p: (j, len(units) - j) for j, unit in enumerate(units) for p in unit.parameters()}
    return found


def _matched(module: Any) -> Layers:
    """The layers of a timm model, of which the classifier's, where the tasks' heads are, is the last."""
    named = (getattr(module, "pretrained_cfg", None) or {}).get("classifier") or "head"
    classifier = f"{named if isinstance(named, str) else named[0]}.weight"
    names = plain_names(module)
    parameters = {**{name: p for p, name in names.items()}, classifier: None}
    ids = group_with_matcher(iter(parameters.items()), module.group_matcher(coarse=False), reverse=True)
    top = max(ids.values())
    return {p: (ids[name], top - ids[name]) for p, name in names.items() if name != classifier}


def _outermost_with_matcher(module: nn.Module) -> Iterator[nn.Module]:
    if callable(getattr(module, "group_matcher", None)):
        yield module
    else:
        for child in module.children():
            yield from _outermost_with_matcher(child)


def _without_weight_decay(model: nn.Module) -> set[nn.Parameter]:
    """Parameters with one axis or none, biases, and those that a module itself names, as positions."""
    found = {p for p, name in plain_names(model).items() if p.ndim <= 1 or name.endswith(".bias")}
    for module in model.modules():
        if callable(own := getattr(module, "no_weight_decay", None)):
            patterns = list(own())
            found |= {p for p, name in plain_names(module).items() if any(fnmatch.fnmatch(name, x) for x in patterns)}
    return found
