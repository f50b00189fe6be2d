"""Composing a configuration, and building one component of it from its ``_target_``."""

from __future__ import annotations

import difflib
import inspect
import logging
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal, Union

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from mtl.config.checks import OWN_CODE, RESERVED, unknown_argument
from mtl.config.reference import help_text
from mtl.config.schema import Config
from mtl.config.source import can_be_found
from mtl.errors import ConfigError, reason_of

logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # it logs what import_target's error says
ConfigStore.instance().store(name="schema", node=Config)
# There is one store in a process, but Hydra copies it, with all that it holds, for each group that --help lists.
ConfigStore.__deepcopy__ = lambda store, memo: store

# In an installed package conf/ lies inside mtl/, in the repository beside it.
HERE = Path(__file__).resolve().parents[1]
CONF = HERE / "conf" if (HERE / "conf").is_dir() else HERE.parent / "conf"
OmegaConf.register_new_resolver("mtl.help", lambda: help_text(CONF), replace=True)  # of conf/hydra/help/mtl.yaml


def load(overrides: Iterable[str] = ()) -> DictConfig:
    """Compose a configuration as the command line would, for notebooks and tests: ``load(["strategy=naive"])``.

    Within a Hydra application, its folders of configurations are searched.
    """
    with nullcontext() if GlobalHydra().is_initialized() else initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose("config", overrides=list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(composed)  # what ${hydra:…} refers to
    composed.name = str(composed.name)
    with open_dict(composed):
        del composed["hydra"]
    return composed


def make(key: str, node: Any, **offered: Any) -> Any:
    """Build the component that ``node`` (found at ``key``) describes.

    An argument of the constructor that the configuration leaves out, or null, is filled in where ``offered`` has it. A
    list of numbers becomes a tensor where the constructor takes one. ConfigError with the key for an unknown or missing
    argument, a wrong type, and every error of the constructor.
    """
    raw: Any = OmegaConf.to_container(node, resolve=False) if isinstance(node, DictConfig) else node
    node = _plain(node) if isinstance(node, DictConfig) else {name: _plain(value) for name, value in node.items()}
    target = import_target(key, node)
    # Hydra cannot delete a key that is null, where another class takes the place of the one that had the argument.
    node = {name: value for name, value in node.items() if value is not None or not _refuses(target, name)}
    check_arguments(key, target, node, offered, raw)
    filled = {name: value for name, value in offered.items() if node.get(name) is None and takes(target, name)}
    try:
        filled |= _lists_as_tensors(target, node)
        made = instantiate(node, _partial_=True, _convert_="all")
        return partial(made, **filled) if node.get("_partial_") else made(**filled)
    except ConfigError:  # of a component that this one makes
        raise
    except Exception as error:
        # Hydra wraps the error of a nested component; any other cause is the constructor's own affair.
        inner = error.__cause__ if isinstance(error, HydraException) and error.__cause__ else error
        first = "call super().__init__() first: " if "before Module.__init__() call" in str(inner) else ""
        raise ConfigError(f"{key}: {first}{reason_of(inner)}") from error


def make_data(cfg: DictConfig, metadata: Mapping[str, Any] | None = None) -> Any:
    """The data set of a configuration; ``metadata``: another run's, with which the files are to be read."""
    own = {key: value for key, value in cfg.data.items() if key != "on_error"}
    reads_text = getattr(import_target("backbone", cfg.backbone), "reads_text", False)
    # Empty metadata are none: a data set of an own class may have learnt nothing.
    return make("data", own, seed=cfg.seed, metadata=metadata or None, reads_text=reads_text)


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _lists_as_tensors(target: Any, node: Mapping[str, Any]) -> dict[str, Any]:
    """The lists of numbers in ``node`` for which ``target`` takes a tensor, as the weights of classes, in float32."""
    import torch

    _, hints = _signature(target) or ({}, {})
    takes_tensor = {name for name, hint in hints.items() if torch.Tensor in (hint, *typing.get_args(hint))}
    lists = {name: value for name, value in node.items() if isinstance(value, list) and name in takes_tensor}
    return {name: torch.tensor(value, dtype=torch.float32) for name, value in lists.items()}


def import_target(key: str, node: Mapping[str, Any]) -> Any:
    """The class or function that ``node`` (found at ``key``) names; ConfigError where it cannot be imported."""
    try:
        return get_object(node["_target_"])
    except Exception as error:
        reason = _why_not(str(node["_target_"]), error.__cause__ or error)
        raise ConfigError(f"{key}._target_={node['_target_']} cannot be imported: {reason}") from error


def _why_not(target: str, error: BaseException) -> str:
    """Why a dotted name cannot be imported: its module lacks it, there is no such module, or the module fails."""
    module, _, name = target.rpartition(".")
    if not module:
        return f"its module must stand before it, as in mine.{name}."
    if module in sys.modules:
        close = difflib.get_close_matches(name, dir(sys.modules[module]), n=1)
        return f"{module} has no {name}{f'; did you mean {close[0]}' if close else ''}."
    if not can_be_found(target):
        return f"there is no package {target.partition('.')[0]}; {OWN_CODE}"
    return f"{reason_of(error)}."


def check_arguments(
    key: str, target: Any, node: Mapping[str, Any], offered: Mapping[str, Any], raw: Any = None
) -> None:
    """ConfigError for an argument of ``node`` that its ``target`` does not take, lacks, or takes another type of.

    ``raw`` is the node with its references unresolved, for the words of the error: a reference may be to a secret.
    """
    name = node["_target_"]
    signature = _signature(target)
    if signature is None:
        return
    parameters, hints = signature
    named = {n: p for n, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    for argument, value in node.items():
        if argument in RESERVED:
            continue
        if argument not in named and len(named) == len(parameters):
            raise ConfigError(unknown_argument(key, argument, name, named))
        if not _accepts(hints.get(argument, Any), value):
            kind = str(hints[argument]).removeprefix("<class '").removesuffix("'>").replace("typing.", "")
            text = raw.get(argument, value) if isinstance(raw, dict) else value
            if torch_number := float in typing.get_args(hints[argument]):
                kind = "a number"
            component = not torch_number and isinstance(value, str) and kind not in ("int", "float", "bool")
            remedy = f"; a class of yours is named as {key}.{argument}._target_={text}" if component else ""
            raise ConfigError(f"{key}.{argument}={text} has the wrong type: {name} takes {kind}{remedy}.")
        if isinstance(value, dict) and "_target_" in value:
            check_arguments(f"{key}.{argument}", import_target(f"{key}.{argument}", value), value, {})
    if node.get("_partial_"):  # the rest is given by whoever calls it
        return
    for argument, parameter in named.items():
        if parameter.default is parameter.empty and argument not in {*node, *offered} and "_args_" not in node:
            raise ConfigError(
                f"{key}: {name} needs {argument}, which the configuration does not give and which cannot "
                f"be filled in (what is known here: {', '.join(offered) or 'nothing'})"
                f"{_how_to_give(key, argument, target)}."
            )


def _how_to_give(key: str, argument: str, target: Any) -> str:
    """How an argument that is missing is given; a function may also be meant as it is, as a loss."""
    itself = f"; if the function itself is meant, write +{key}._partial_=true" if inspect.isroutine(target) else ""
    return f": give +{key}.{argument}=…{itself}"


def _signature(target: Any) -> tuple[dict[str, inspect.Parameter], dict[str, Any]] | None:
    """The parameters of a class or function and their types; None where Python cannot tell, as for code in C."""
    import torch  # not at the top: --help and mistakes on the command line come without torch

    if inspect.isclass(target) and target.__init__ is torch.nn.Module.__init__:
        return {}, {}  # it takes anything, to complain later
    try:
        parameters = dict(inspect.signature(target).parameters)
    except (TypeError, ValueError):
        return None
    try:
        return parameters, typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except Exception:  # annotated with names that cannot be resolved: the constructor's own errors must do
        return parameters, {}


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


def _refuses(target: Any, name: str) -> bool:
    """Whether it is known that a class or function has no such argument."""
    signature = _signature(target)
    if signature is None or name in RESERVED:
        return False
    parameters = signature[0]
    return name not in parameters and all(p.kind is not p.VAR_KEYWORD for p in parameters.values())


def takes(target: Any, name: str) -> bool:
    """Whether a class or function names an argument."""
    try:
        return name in inspect.signature(target).parameters
    except (TypeError, ValueError):
        return False
