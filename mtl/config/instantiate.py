"""Composing a configuration, and building one component of it from its ``_target_``."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Union

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict

from mtl.config.checks import (
    suggestion,
)
from mtl.errors import ConfigError, first_line

# In an installed package conf/ lies inside mtl/, in the repository beside it.
HERE = Path(__file__).resolve().parents[1]
CONF = HERE / "conf" if (HERE / "conf").is_dir() else HERE.parent / "conf"


def load(overrides: Iterable[str] = ()) -> DictConfig:
    """Compose a configuration as the command line would, for notebooks and tests: ``load(["strategy=naive"])``."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose("config", overrides=list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(composed)  # what ${hydra:…} refers to
    composed.name = str(composed.name)
    with open_dict(composed):
        del composed["hydra"]
    return composed


def make(key: str, node: Any, **offered: Any) -> Any:
    """Build the component that ``node`` (found at ``key``) describes.

    An argument that its constructor names, that the configuration leaves open and that is in ``offered`` is filled in.
    Raises ValueError with the key for an unknown or missing argument, a wrong type, and whatever the
    constructor itself objects to.
    """
    from hydra.utils import get_object, instantiate

    raw: Any = OmegaConf.to_container(node, resolve=False) if isinstance(node, DictConfig) else node
    node = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else dict(node)
    try:
        target = get_object(node["_target_"])
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{key}._target_={node['_target_']} cannot be imported: {reason}") from error
    check_arguments(key, target, node, offered, raw)
    filled = {name: value for name, value in offered.items() if name not in node and _takes(target, name)}
    try:
        return instantiate(node, _partial_=True, _convert_="all")(**filled)
    except Exception as error:
        # Hydra wraps what a nested component raised; any other cause is the constructor's own affair.
        inner = error.__cause__ if isinstance(error, HydraException) and error.__cause__ else error
        raise ConfigError(f"{key}: {first_line(inner)}") from error


def check_arguments(
    key: str, target: Any, node: Mapping[str, Any], offered: Mapping[str, Any], raw: Any = None
) -> None:
    """ConfigError for an argument of ``node`` that its ``target`` does not take, lacks, or takes another type of."""
    import torch
    from hydra.utils import get_object

    name = node["_target_"]
    try:
        parameters = dict(inspect.signature(target).parameters)
        hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except Exception:  # written in C, or annotated with names that cannot be resolved: its own errors must do
        hints = {}
        try:
            parameters = dict(inspect.signature(target).parameters)
        except (TypeError, ValueError):
            return
    if inspect.isclass(target) and target.__init__ is torch.nn.Module.__init__:
        parameters = {}  # which takes anything, to complain about it later
    named = {n: p for n, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    anything = len(named) < len(parameters)
    for argument, value in node.items():
        if argument in ("_target_", "_args_", "_partial_", "_convert_", "_recursive_"):
            continue
        if argument not in named and not anything:
            raise ConfigError(f"{key}.{argument} is not an argument of {name}; {suggestion(argument, named)}.")
        if not _accepts(hints.get(argument, Any), value):
            kind = str(hints[argument]).removeprefix("<class '").removesuffix("'>").replace("typing.", "")
            text = raw.get(argument, value) if isinstance(raw, dict) else value  # a reference may be to a secret
            raise ConfigError(f"{key}.{argument}={text} has the wrong type: {name} takes {kind}.")
        if isinstance(value, dict) and "_target_" in value:
            check_arguments(f"{key}.{argument}", get_object(value["_target_"]), value, {})
    for argument, parameter in named.items():
        if parameter.default is parameter.empty and argument not in {*node, *offered} and "_args_" not in node:
            has = ", ".join(offered) or "nothing"
            raise ConfigError(
                f"{key}: {name} needs {argument}, which the configuration does not give and which cannot "
                f"be filled in (what is known here: {has})."
            )


def _accepts(hint: Any, value: Any) -> bool:
    """Whether a scalar from a configuration fits a type hint; anything but a scalar is left to the constructor."""
    if not isinstance(value, str | int | float | bool):
        return True
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_accepts(choice, value) for choice in typing.get_args(hint))
    if origin is Literal:
        return value in typing.get_args(hint)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint in (int, str, bool):
        return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
    # Tensors, containers and functions are never written as one word or number.
    return hint in (Any, object) or not inspect.isclass(origin or hint)


def _takes(target: Any, name: str) -> bool:
    try:
        return name in inspect.signature(target).parameters
    except (TypeError, ValueError):
        return False
