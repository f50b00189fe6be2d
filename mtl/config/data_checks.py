"""What a data set must have, and what its samples must look like, before a model is built for them."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from typing import Any

from mtl.config.checks import suggestion
from mtl.data import SPLITS
from mtl.data.loader import Batches, sequential
from mtl.errors import ConfigError

log = logging.getLogger(__name__)

MEMBERS = ("targets", "metrics", "input_info", "batch_size", "train", "val", "test")


def check_data(data: Any) -> None:
    """ConfigError for a data set that lacks a member, or has a split without samples; see mtl.data."""
    name = f"data ({type(data).__name__})"
    if hasattr(data, "__getitem__") and not hasattr(data, "train"):
        target = f"{type(data).__module__}.{type(data).__qualname__}"
        raise ConfigError(
            f"{name} is a data set without splits: name it as data=dataset data.dataset._target_={target}, which "
            "splits it."
        )
    for member in MEMBERS:
        if not hasattr(data, member):
            close = difflib.get_close_matches(member, [own for own in vars(data) if own not in MEMBERS], n=1)
            hint = f"it has {close[0]}, and " if close else ""
            raise ConfigError(f"{name} has no member {member}; {hint}a data set has {', '.join(MEMBERS)}.")
    targets = data.targets
    if isinstance(targets, str) or not len(targets) or not all(isinstance(target, str) for target in targets):
        raise ConfigError(f"{name}.targets={targets!r} must be a list with the names of all targets, as ('a', 'b').")
    if not isinstance(data.input_info, Mapping):
        raise ConfigError(f"{name}.input_info={data.input_info!r} must be a dict of arguments for the backbone.")
    if not isinstance(data.batch_size, int) or data.batch_size < 1:
        raise ConfigError(f"{name}.batch_size={data.batch_size!r} must be a whole number of 1 or more.")
    for split in SPLITS:
        _check_split(f"{name}.{split}", getattr(data, split))


def _check_split(name: str, split: Any) -> None:
    for member in ("__len__", "__getitem__"):
        if not hasattr(split, member) and not (member == "__getitem__" and hasattr(split, "batch")):
            raise ConfigError(f"{name} ({type(split).__name__}) has no {member}: a split is a map-style data set.")
    if not len(split):
        raise ConfigError(f"{name} has no sample; it must have one or more.")


def make_metrics(data: Any, target: str) -> dict[str, Any]:
    """A target's metrics by name; ConfigError unless the data set gives a dict of them."""
    found = data.metrics(target)
    if not isinstance(found, Mapping):
        raise ConfigError(f"data.metrics({target!r}) must give a dict of metrics by name, but gives a {_kind(found)}.")
    return dict(found)


def read_two(data: Any, split: str, seed: int, on_error: str, labels: Any = None) -> tuple[Any, Mapping[str, Any]]:
    """Inputs and targets of a split's first two samples; ConfigError if they are not what mtl.data describes.

    ``labels``: the targets that the tasks' losses accept, if they are known.
    """
    dataset = getattr(data, split)
    keys = sequential(min(2, len(dataset)), 2)
    batch = next(iter(Batches(dataset, keys, seed, split=split, on_error=on_error, labels=labels)), None)
    if batch is None:
        raise ConfigError(f"data.{split}: neither of the first two samples can be read.")
    if not isinstance(batch, list | tuple) or len(batch) != 2:
        raise ConfigError(f"data.{split}: a sample must be (inputs, targets), but it is a {_kind(batch)}.")
    inputs, targets = batch
    if not isinstance(targets, Mapping):
        named = ", ".join(data.targets)
        raise ConfigError(
            f"data.{split}: the targets of a sample must be a dict with the keys {named}, but they are a "
            f"{_kind(targets)}."
        )
    return inputs, targets


def check_keys(data: Any, split: str, targets: Mapping[str, Any]) -> None:
    """ConfigError for a key of a split's ``targets`` that seems to be a target's name misspelt; a warning if it may be.

    A sample may lack targets, and have further keys: only both together are suspect.
    """
    unknown = [key for key in targets if key not in data.targets]
    absent = [target for target in data.targets if target not in targets]
    for key in unknown if absent else ():
        close = [target for target in absent if _alike(str(key), target)]
        sentence = f"data.{split}: the samples' targets have the key {key}, which is not in data.targets"
        if close or len(absent) == len(data.targets):
            raise ConfigError(f"{sentence}, and none for {', '.join(absent)}; {suggestion(str(key), close or absent)}.")
        log.warning("%s, and the first samples have none for %s", sentence, ", ".join(absent))


def _alike(key: str, target: str) -> bool:
    return bool(difflib.get_close_matches(key.casefold(), [target.casefold()], n=1))


def _kind(value: Any) -> str:
    return f"{type(value).__name__}{f' of {len(value)}' if isinstance(value, list | tuple) else ''}"
