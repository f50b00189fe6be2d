"""Hydra's errors while it composes a configuration, each as one sentence with the key, its value and what is meant."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ValueType
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mtl.config import CONF, check, load
from mtl.config.checks import RESERVED
from mtl.config.source import arguments_of
from mtl.distributed.ranks import rank
from mtl.errors import ConfigError, closest_path
from mtl.jobs.overrides import config_folder, key_of, quoted, with_config_folder

LISTED = (ValueType.SIMPLE_CHOICE_SWEEP, ValueType.CHOICE_SWEEP, ValueType.RANGE_SWEEP)  # sweeps of known values
SWITCH = "HYDRA_FULL_ERROR"  # makes Hydra raise its errors, where it would print them and exit
# The end of OmegaConf's sentence about a wrong type, and ours.
TYPES = {"to Integer": "a whole number", "to Float": "a number", "valid bool": "true or false"}

_before: list[str | None] = []  # the switch's value while Hydra composes; empty otherwise


@contextmanager
def composition_errors(arguments: Sequence[str]) -> Iterator[None]:
    """Exit with one sentence for an error of Hydra inside the context, until :func:`composed` is called.

    ``arguments`` is the command line. With HYDRA_FULL_ERROR=1 the errors stay Hydra's.
    """
    if wants_tracebacks():
        yield
        return
    _before[:] = [os.environ.get(SWITCH)]
    os.environ[SWITCH] = "1"
    try:
        yield
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        if not _before:
            raise
        sentence = explain(error, arguments)
        sys.exit(1 if rank() else sentence)
    finally:
        composed()


def composed() -> None:
    """The configuration is composed: later errors are a job's, and Hydra prints them as the user has asked."""
    if _before:
        value = _before.pop()
        if value is None:
            del os.environ[SWITCH]
        else:
            os.environ[SWITCH] = value


def wants_tracebacks() -> bool:
    """Whether the user asks for the traceback of every error; Hydra reads its switch in the same way."""
    return os.environ.get(SWITCH) == "1"


def explain(error: Exception, arguments: Sequence[str]) -> str:
    """One sentence for an error of Hydra: the override that caused it, what is wrong, and the closest names."""
    message, arguments = " ".join(str(error).split()), with_config_folder(arguments)
    overrides = [argument for argument in arguments if not argument.startswith("-")]
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _missing_option(error, overrides, config_folder(arguments))
    if message.startswith("Additional config directory") and (folder := config_folder(arguments)):
        return f"-cd {folder}: there is no such folder{closest_path(folder)}."
    if isinstance(error, OverrideParseException):
        reason = re.sub(r"^Error parsing override '.*?' (?=\\w)| See https:.*$", "", message)
        return f"{error.override} cannot be read ({reason}): write key=value, with quotes around special characters."
    if "must be a string or a list" in message:
        return _null_group(overrides) or f"{message}."
    if found := re.search(r"Ambiguous value for argument '(.*?)' 1\.|Sweep parameters '(.*?)' requires", message):
        override = found[1] or found[2]
        return f"{override} has several values: add -m to run one job for each; for a list write {_as_list(override)}."
    if found := re.search(r"Could not (override|delete from config\.|delete) '(.*?)'", message):
        inside = str(getattr(error.__cause__, "full_key", None) or found[2])  # a key of a value that is a mapping
        return _unknown_key(found[2] if found[2].startswith(inside) else inside, arguments)
    if found := re.search(r"An item is already at '(.*?)'", message):
        return f"{found[1]} is a key already: leave the + out."
    if found := re.search(r"Error merging override (\S+)", message):
        return _wrong_type(found[1], error)
    return message if message.endswith(".") else f"{message}."


def check_sweep(overrides: Sequence[str], folder: Path | None) -> None:
    """ConfigError for a mistake in the first job of a sweep, or an option that a later job names and its group lacks.

    ``folder`` is the one that ``-cd`` names.
    """
    parsed = OverridesParser.create().parse_overrides([*overrides])
    listed = [text for text in parsed if text.value_type in LISTED]
    sweeps = {text.get_key_element(): [*text.sweep_string_iterator()] for text in listed}
    first = [text.input_line for text in parsed if not text.is_sweep_override()]
    jobs = [[*first, *(f"{key}={values[0]}" for key, values in sweeps.items() if values)]]
    for key, values in sweeps.items():
        unknown = [value for value in values if not _is_option(key, value, folder)]
        jobs += [[*jobs[0], f"{key}={value}"] for value in unknown[:1]]
    for job in jobs:
        compose_job(job, folder)


def compose_job(job: Sequence[str], folder: Path | None) -> DictConfig:
    """The configuration of one job of a sweep; ConfigError for a mistake in it. ``folder`` is the one of ``-cd``."""
    arguments = [*job] if folder is None else [f"--config-dir={folder}", *job]
    try:
        found = _compose(arguments)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        raise ConfigError(explain(error, arguments)) from error
    check(found)
    return found


def _is_option(key: str, value: str, folder: Path | None) -> bool:
    """Whether the file of a group's option is there; true for what is no group."""
    group = key.lstrip("+~").partition("@")[0]
    places = [CONF / group] if folder is None else [CONF / group, folder / group]
    return not any(place.is_dir() for place in places) or any((place / f"{value}.yaml").is_file() for place in places)


def _missing_option(error: MissingConfigException, overrides: Sequence[str], folder: Path | None) -> str:
    """The sentence for a group's option that does not exist."""
    group, _, name = str(error.missing_cfg_file).rpartition("/")
    options = [option for option in error.options or () if not option.startswith("_")]
    asked = [text for text in overrides if key_of(text).split("@")[0] == group and text.partition("=")[2] == name]
    if not options:
        return f"{asked[0] if asked else group}: {group} is no group of options; {_closest(group, _groups())}."
    if asked and "." in name:
        data = "data=dataset data.dataset" if group == "data" else group
        return f"{asked[0]}: {group} has no option {name}; a class is named as {data}._target_={name}."
    if asked:
        own = "" if folder is not None else "; options of your own need -cd <their folder>"
        return f"{asked[0]}: {group} has no option {name}; {_closest(name, options)}{own}."
    place = re.search(r"In '(.*?)'", str(error))
    if place and place[1] != "config":
        return f"{place[1]}.yaml names the option {name}, which {group} does not have; {_closest(name, options)}."
    return f"{group} follows data, and has no option {name}: give one, as in {group}=digits; {_closest(name, options)}."


def _null_group(overrides: Sequence[str]) -> str | None:
    """The sentence for a group that was given no option, as in ``strategy=null``."""
    for text in overrides:
        group = key_of(text)
        if text.partition("=")[2] in ("null", "", "None") and group in _groups():
            return f"{text}: {group} needs one of its options, {', '.join(_options(group))}."
    return None


def _unknown_key(key: str, arguments: Sequence[str]) -> str:
    """The sentence for a key that the configuration does not have, with the keys that may be meant."""
    if key in _groups():
        how = "head@heads.<task>=<option>" if key == "head" else f"+{key}=<option>"
        return f"{key} is a group without a default: write {how}; its options are {', '.join(_options(key))}."
    unknown = f"{key} is not a key of the configuration"
    if key.startswith("hydra."):
        return f"{unknown}; mtl-train --cfg hydra prints Hydra's own keys."
    if key.startswith("metrics."):
        return f"{unknown} yet: write +{key}=… to add it."
    config = _without(key, arguments)
    if _has(config, key):  # Hydra takes a null for a key that is not there
        return f"{key} is null, and so has no value to take away."
    parent, name, rest = _first_unknown(config, key)
    if name in RESERVED:  # Hydra's own keys of a component
        return f"{unknown}; write +{key}=…."
    if parent and OmegaConf.select(config, parent) is None:  # a mapping without keys yet, as data.kinds
        return f"{unknown} yet: write +{key}=… to add it."
    siblings = _names(config, parent)
    if close := difflib.get_close_matches(name, siblings, n=1):
        return f"{unknown}; did you mean {_dotted(parent, close[0])}?"
    for ending in dict.fromkeys([rest, name]):
        if same := sorted((full for full in _flat(config) if f".{full}".endswith(f".{ending}")), key=len):
            return f"{unknown}; did you mean {' or '.join(same[:3])}?"
    if not parent:
        return f"{unknown}; {_closest(name, [*siblings, *_groups()])}."
    if "_target_" in siblings:
        target = OmegaConf.select(config, f"{parent}._target_")
        others = ", ".join(name for name in siblings if name != "_target_") or "none"
        known = arguments_of(str(target))
        if known is not None and name not in known:  # with a + it would be refused again
            close = difflib.get_close_matches(name, known, n=1)
            ending = f"did you mean +{parent}.{close[0]}=…" if close else f"{parent} has {others}"
            return f"{unknown}, nor is {name} an argument of {target}; {ending}."
        return f"{unknown}; {parent} has {others}, and +{key}=… is another argument of {target}."
    return f"{unknown}; {parent} has {', '.join(siblings) or 'no keys'}."


def _has(config: Any, key: str) -> bool:
    parent, _, name = key.rpartition(".")
    return name in _names(config, parent)


def _first_unknown(config: Any, key: str) -> tuple[str, str, str]:
    """The last level of ``key`` that the configuration has, the name below it that it lacks, and all that is below."""
    parent, path = "", key.split(".")
    while len(path) > 1 and path[0] in _names(config, parent):
        parent = _dotted(parent, path.pop(0))
    return parent, path[0], ".".join(path)


def _wrong_type(override: str, error: Exception) -> str:
    """The sentence for a value of the wrong type."""
    reason = " ".join(str(error.__cause__ or error).split()).partition(" full_key:")[0]
    wanted = next((words for name, words in TYPES.items() if name in reason), None)
    if "is not a ListConfig" in reason:
        wanted = f"a list: write {_as_list(override)}"
    return f"{override} must be {wanted}." if wanted else f"{override}: {reason.rstrip('.')}."


def _without(key: str, arguments: Sequence[str]) -> DictConfig:
    """The configuration of this command line but for ``key``; the default one if the line has more mistakes."""
    rest = [text for text in arguments if key_of(text) != key]
    for attempt in (rest, [text for text in rest if text.startswith("--config-dir")], []):
        try:
            return _compose(attempt)
        except Exception:  # another mistake on the same command line
            continue
    raise AssertionError("the default configuration cannot be composed")


def _compose(arguments: Sequence[str]) -> DictConfig:
    folder = config_folder(arguments)
    places = [] if folder is None else [f"hydra.searchpath=[{quoted(f'file://{folder}')}]"]
    return load([*places, *(text for text in arguments if not text.startswith("-"))])


def _as_list(override: str) -> str:
    key, _, value = override.partition("=")
    return f"'{key}=[{value}]'"


def _closest(name: str, accepted: Iterable[str]) -> str:
    names = [*dict.fromkeys(accepted)]
    close = difflib.get_close_matches(name, names, n=3)
    return f"did you mean {' or '.join(close)}" if close else f"there are {', '.join(names)}"


def _dotted(parent: str, name: str) -> str:
    return f"{parent}.{name}" if parent else name


def _names(config: Any, key: str) -> list[str]:
    node = OmegaConf.select(config, key) if key else config
    return [str(name) for name in node] if isinstance(node, DictConfig) else []


def _flat(config: Any, prefix: str = "") -> Iterator[str]:
    for name in _names(config, prefix):
        full = _dotted(prefix, name)
        yield full
        yield from _flat(config, full)


def _groups() -> list[str]:
    return sorted(folder.name for folder in CONF.iterdir() if folder.is_dir() and folder.name != "hydra")


def _options(group: str) -> list[str]:
    return sorted(file.stem for file in (CONF / group).glob("*.yaml") if not file.stem.startswith("_"))
