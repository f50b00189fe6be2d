"""The optimizer: a group of parameters for each part of the model with settings of its own."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import torch
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from torch import nn

from mtl.config.checks import OURS
from mtl.config.instantiate import check_arguments, import_target, make
from mtl.config.layer_decay import scale_rates, split_groups
from mtl.distributed.sharding import is_sharded
from mtl.errors import ConfigError, reason_of
from mtl.model import MultiTaskModel, find_submodule
from mtl.system.environment import forked_rng
from mtl.tasks import loss_modules

log = logging.getLogger(__name__)

# Optimizers that step all parameters in one kernel on every device, unless the configuration says otherwise: on a CPU
# it takes a sixth of Adam's time and half of SGD's.
FUSED = "torch.optim.Adam", "torch.optim.AdamW", "torch.optim.SGD"
KEY = "optimizer.groups"


def make_optimizer(
    node: DictConfig, parts: Any, strategy: Any, later: AbstractSet[nn.Parameter] = frozenset()
) -> torch.optim.Optimizer:
    """The optimizer, with a group for the backbone, one for the heads, one for each submodule that ``groups`` names
    below them, one for what decides the sharing if ``sharing`` says how, and one for a learned weighting. ConfigError
    for a group or a step that is impossible.

    The weighting has the heads' settings but no weight decay, which would pull its weights to those of the start.
    ``layer_decay`` and ``weight_decay_exclude_1d`` split the groups. Parameters without a gradient are no part of a
    step: ``later``, frozen ones that a later step trains, are in their groups from the start.
    """
    arguments = {str(key): value for key, value in node.items() if key not in OURS["optimizer"]}
    learned = [p for p in strategy.parameters() if p.requires_grad]
    of_losses = [p for p in loss_modules(parts.tasks).parameters() if p.requires_grad]
    trained = [*(p for p in parts.model.parameters() if p.requires_grad), *of_losses, *learned]
    if not trained:
        raise ConfigError("optimizer: neither the backbone nor the heads have a parameter to train.")
    fused = _fused(arguments, parts.model, of_losses, later)
    _check_step(node)
    _try_step(arguments, trained[0], fused)
    found = _groups(node, parts.model, later)
    members, settings = _members(found, later), {group.name: group.settings for group in found}
    members["heads"] += of_losses
    _take_sharing(node, parts.model, members, settings)
    members["weighting"], settings["weighting"] = learned, settings["heads"]
    groups = [{"name": name, "params": params, **settings[name]} for name, params in members.items() if params]
    if node.get("weight_decay_exclude_1d"):
        _check_settings("optimizer", str(node["_target_"]), {"weight_decay": 0.0})
    optimizer = make("optimizer", arguments, params=split_groups(groups, node, parts.model), **fused)
    scale_rates(optimizer)
    for group in optimizer.param_groups:
        if group["name"] == "weighting" and "weight_decay" in group:
            group["weight_decay"] = 0.0
    return optimizer


# ------------------------------------------------------------------------------------------------------ groups


@dataclass
class _Group:
    """A submodule with the settings of its parameters: its own, and those of the modules around it."""

    name: str
    module: nn.Module
    settings: dict[str, Any]


def _groups(node: DictConfig, model: MultiTaskModel, later: AbstractSet[nn.Parameter]) -> list[_Group]:
    """The backbone, the heads and the submodules below them that ``optimizer.groups`` names, outer ones first."""
    tree: Any = OmegaConf.to_container(node.get("groups") or OmegaConf.create({}), resolve=True)
    parts = {"backbone": model.backbone, "heads": model.heads}
    found = [
        group
        for part, module in parts.items()
        for group in _walk(_Group(part, module, {}), tree.get(part) or {}, model, str(node["_target_"]), later)
    ]
    return sorted(found, key=lambda group: group.name.count("."))


def _walk(
    group: _Group, node: Mapping[str, Any], model: MultiTaskModel, target: str, later: AbstractSet[nn.Parameter]
) -> Iterator[_Group]:
    """The group of a module and those below it: a mapping names a submodule, everything else is a setting."""
    key = f"{KEY}.{group.name}"
    below = {name: value for name, value in node.items() if isinstance(value, Mapping)}
    own = {name: value for name, value in node.items() if name not in below}
    children = dict(group.module.named_children())
    for name, value in own.items():
        if name in children:
            raise ConfigError(f"{key}.{name}={value} must be a mapping, as in {key}.{name}.lr=….")
    _check_settings(key, target, own)
    if own and "." in group.name and not any(_is_trained(p, later) for p in group.module.parameters()):
        raise ConfigError(f"{key} has no parameter to train; leave it out.")
    settings = group.settings | own
    if own or "." not in group.name:
        yield _Group(group.name, group.module, settings)
    for name, value in below.items():
        path = f"{group.name}.{name}"
        try:
            child = find_submodule(model, path)
        except ValueError as error:
            raise ConfigError(f"{KEY}.{path}: {error}") from error
        yield from _walk(_Group(path, child, settings), value, model, target, later)


def _is_trained(parameter: nn.Parameter, later: AbstractSet[nn.Parameter]) -> bool:
    return parameter.requires_grad or parameter in later


def _members(groups: list[_Group], later: AbstractSet[nn.Parameter]) -> dict[str, list[nn.Parameter]]:
    """The parameters to train of every group, by its name: a parameter belongs to the innermost.

    ConfigError where two modules of which none is inside the other have a parameter in common.
    """
    owner: dict[nn.Parameter, str] = {}
    for group in groups:
        for parameter in group.module.parameters():
            before = owner.get(parameter)
            if before is not None and not group.name.startswith(f"{before}."):
                raise ConfigError(
                    f"{KEY}: {before} and {group.name} have a parameter in common, which can be in one group only."
                )
            owner[parameter] = group.name
    members: dict[str, list[nn.Parameter]] = {group.name: [] for group in groups}
    for parameter, name in owner.items():
        if _is_trained(parameter, later):
            members[name].append(parameter)
    return members


def _take_sharing(
    node: DictConfig, model: MultiTaskModel, members: dict[str, list[nn.Parameter]], settings: dict[str, dict[str, Any]]
) -> None:
    """Move the parameters that decide the sharing into a group ``sharing``, if it has a setting of its own."""
    own = {str(key): value for key, value in (node.get("sharing") or {}).items() if value is not None}
    if not own:
        return
    _check_settings("optimizer.sharing", str(node["_target_"]), own)
    modules: Any = [module for module in model.modules() if hasattr(module, "sharing_parameters")]
    deciding = {p for module in modules for p in module.sharing_parameters() if p.requires_grad}
    if not deciding:
        log.warning("optimizer.sharing: the architecture has no parameter that decides the sharing, as a gate has.")
    for name, parameters in members.items():
        members[name] = [p for p in parameters if p not in deciding]
    members["sharing"], settings["sharing"] = list(dict.fromkeys(p for p in model.parameters() if p in deciding)), own


def _check_settings(key: str, target: str, settings: Mapping[str, Any]) -> None:
    """ConfigError for a setting that the optimizer does not have: torch takes any key of a group, and ignores it."""
    check_arguments(key, get_object(target), {"_target_": target, **settings}, {"params": None})
    for name, value in settings.items():
        if isinstance(value, int | float) and value < 0:
            raise ConfigError(f"{key}.{name}={value} must be 0 or more.")


# ------------------------------------------------------------------------------------------------------- steps


def _check_step(node: DictConfig) -> None:
    """ConfigError for an optimizer whose ``step`` needs a closure, as LBFGS."""
    step = getattr(import_target("optimizer", node), "step", None)  # None for a function that makes one
    needed = [
        parameter.name
        for parameter in (list(inspect.signature(step).parameters.values())[1:] if callable(step) else ())
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if needed:
        raise ConfigError(
            f"optimizer._target_={node['_target_']} needs {' and '.join(needed)} in its step, to run the model "
            "again; a step here is one pass: use an optimizer whose step needs no argument, as torch.optim.AdamW."
        )


def _try_step(arguments: Mapping[str, Any], like: nn.Parameter, fused: Mapping[str, bool]) -> None:
    """Take a step of one parameter, ``like`` another, with the gradient zero; ConfigError for an optimizer that cannot.

    One may ask for a closure in spite of its default, or for a second derivative.
    """
    alone = nn.Parameter(torch.ones(like.shape, dtype=like.dtype, device=like.device))
    alone.grad = torch.zeros_like(alone)
    optimizer = _make_one(arguments, [alone], fused)
    try:
        with forked_rng([like.device]):
            optimizer.step()
    except Exception as error:
        raise ConfigError(
            f"optimizer._target_={arguments['_target_']} cannot take a step after one pass of the model: "
            f"{reason_of(error)}"
        ) from error


def _make_one(
    arguments: Mapping[str, Any], params: list[nn.Parameter], fused: Mapping[str, bool]
) -> torch.optim.Optimizer:
    """The optimizer of these parameters; where its constructor refuses an argument, the ConfigError has its key.

    It is the argument without which the optimizer can be made.
    """
    try:
        return make("optimizer", arguments, params=params, **fused)
    except ConfigError as error:
        reason = str(error).removeprefix("optimizer: ")
        for name, value in arguments.items() if reason != str(error) else ():
            try:
                make("optimizer", {key: other for key, other in arguments.items() if key != name}, params=params)
            except Exception:  # without its _target_, or with another argument that is wrong
                continue
            raise ConfigError(f"optimizer.{name}={value}: {reason}") from error
        raise


def _fused(
    arguments: Mapping[str, Any],
    model: MultiTaskModel,
    of_losses: list[nn.Parameter],
    later: AbstractSet[nn.Parameter],
) -> dict[str, bool]:
    """The argument that makes the optimizer one kernel, where it has one and every parameter is dense in memory.

    The kernel ignores strides, and writes past the end of a parameter with gaps. It takes no sharded parameters and
    whole ones together; the heads' group has both where heads have parameters in common, or losses some of their own.
    SGD's takes no sharded ones at all, and none whose momentum begins ``later`` than that of others.
    """
    is_sgd = arguments["_target_"] == "torch.optim.SGD"
    if is_sgd and later and arguments.get("fused"):
        raise ConfigError(
            "optimizer.fused=true: torch's SGD in one kernel cannot begin the momentum of what trainer.unfreeze_at "
            "trains later; use false."
        )
    no_kernel = is_sgd and (bool(later) or is_sharded(*model.parameters()))
    mixed = len({is_sharded(p) for p in (*model.heads.parameters(), *of_losses)}) == 2
    if mixed and arguments.get("fused"):
        raise ConfigError(
            "optimizer.fused=true: with trainer.shard=all the parameters that several heads share, and those of "
            "losses, stay whole, and one kernel cannot step them together with sharded ones; use false."
        )
    if no_kernel and arguments.get("fused"):
        raise ConfigError("optimizer.fused=true: torch's SGD has no fused kernel for sharded parameters; use false.")
    with_gaps = [
        name
        for name, p in model.named_parameters()
        if not p.is_contiguous() and torch.empty_like(p, device="meta").stride() != p.stride()
    ]
    if with_gaps and arguments.get("fused"):
        raise ConfigError(
            f"optimizer.fused=true needs parameters without gaps in memory, unlike {with_gaps[0]}; use false."
        )
    chosen = {"fused", "foreach"} & {*arguments}
    unfused = chosen or with_gaps or mixed or no_kernel
    return {"fused": True} if arguments["_target_"] in FUSED and not unfused else {}
