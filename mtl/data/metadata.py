"""What a data set is, for the checkpoint: what its numbers mean, and which samples are in which split.

The description is made of plain types and tensors:

- ``targets``, ``kinds``, ``input_info`` and ``metadata`` of the data set, and the mean and deviation of ``normalize``:
  what the model's inputs and outputs mean;
- ``preprocess``, the plain values of which it is made; ``class_names``, ``scales`` and ``units`` of the targets;
  ``inputs_per_task``; and ``sample``, the shapes and types of two samples: what :func:`mtl.load` needs besides, to
  predict without the data. Older checkpoints lack them;
- ``backbone``: the backbone's own ``config``, from which it is built without its files; None for most;
- ``splits``: of each split its ``size``; ``names``, a number ``[N]`` for each sample's name; and its ``digest``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from mtl.data import SPLITS
from mtl.data.names import hash_names

MEANING = ("targets", "kinds", "input_info", "metadata", "normalize")
SHOWN = 3  # names in a sentence

Description = Mapping[str, Any]


def digest(*arrays: Any) -> str:
    """A fingerprint of arrays, tensors or bytes."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(array if isinstance(array, bytes) else np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def describe(data: Any) -> dict[str, Any]:
    """The description of a data set. ValueError for metadata that a checkpoint cannot hold."""
    normalize = getattr(data, "normalize", None)
    pixels = normalize if isinstance(normalize, v2.Normalize) else None
    return {
        "targets": list(data.targets),
        "kinds": _plain("kinds", getattr(data, "kinds", None) or {}),
        "input_info": _plain("input_info", data.input_info),
        "metadata": _plain("metadata", getattr(data, "metadata", None) or {}),
        "normalize": None if pixels is None else {"mean": list(pixels.mean), "std": list(pixels.std)},
        "preprocess": _plain("preprocess", own.state() if (own := getattr(data, "preprocess", None)) else None),
        **{key: _plain(key, getattr(data, key, None) or {}) for key in ("class_names", "scales", "units")},
        "inputs_per_task": bool(getattr(data, "inputs_per_task", False)),
        "splits": {split: _describe_split(getattr(data, split)) for split in SPLITS},
    }


def describe_sample(inputs: Any, targets: Mapping[str, Any]) -> dict[str, Any]:
    """The shapes and types of two samples, in plain values; None stands for what is no tensor."""
    return {"inputs": _shapes(inputs), "targets": _shapes(targets)}


def tensors_like(shapes: Any) -> Any:
    """Tensors of the shapes and types that :func:`describe_sample` gives: zeros, or true.

    ValueError where the inputs were no nesting of tensors.
    """
    if isinstance(shapes, Mapping) and shapes.keys() == {"shape", "dtype"}:
        return torch.full(shapes["shape"], shapes["dtype"] == "bool", dtype=getattr(torch, shapes["dtype"]))
    if isinstance(shapes, Mapping):
        return {key: tensors_like(own) for key, own in shapes.items()}
    if isinstance(shapes, list):
        return [tensors_like(own) for own in shapes]
    raise ValueError("its inputs are not tensors, nor lists and dicts of tensors")


def one_sample(shapes: Any) -> Any:
    """The shapes of one sample, of those of a batch: without the first axis."""
    if isinstance(shapes, Mapping) and shapes.keys() == {"shape", "dtype"}:
        return {**shapes, "shape": shapes["shape"][1:]}
    if isinstance(shapes, Mapping):
        return {key: one_sample(own) for key, own in shapes.items()}
    return [one_sample(own) for own in shapes]


def meaning_changes(stored: Description, now: Description) -> list[str]:
    """What the model's inputs or outputs mean differently now: a sentence part for each difference."""
    old, new = ({key: found[key] for key in MEANING} for found in (stored, now))
    return _changes("data", old, new)


def split_changes(stored: Description, now: Description, splits: Iterable[str] = SPLITS) -> list[str]:
    """Which samples of ``splits`` were in another split, are new or are gone; or that their order or labels differ."""
    return [text for split in splits for text in _split_changes(split, stored["splits"], now["splits"])]


def _shapes(value: Any) -> Any:
    if isinstance(value, Tensor):
        return {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, Mapping):
        return {str(key): _shapes(own) for key, own in value.items()}
    return [_shapes(own) for own in value] if isinstance(value, list | tuple) else None


def _describe_split(split: Any) -> dict[str, Any]:
    names = getattr(split, "names", None)
    return {
        "size": len(split),
        "names": None if names is None else torch.from_numpy(hash_names(names)),
        "digest": getattr(split, "digest", None),
    }


def _split_changes(split: str, stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    old, new = stored[split], now[split]
    if old["names"] is None or new["names"] is None:
        if old["size"] != new["size"]:
            return [f"{split} had {old['size']} samples and has {new['size']}"]
        return [f"the content of {split} differs"] if old["digest"] != new["digest"] else []
    changes = []
    for other in SPLITS:
        before = stored[other]["names"]
        if other != split and before is not None:
            moved = torch.isin(new["names"], before) & ~torch.isin(new["names"], old["names"])
            if moved.any():
                changes.append(f"{int(moved.sum())} of {new['size']} samples of {split} were in {other}")
    everything = [part["names"] for part in stored.values() if part["names"] is not None]
    added = ~torch.isin(new["names"], torch.cat(everything))
    gone = ~torch.isin(old["names"], new["names"])
    if added.any() or gone.any():
        counts = f"{int(added.sum())} are new, {int(gone.sum())} are not in it any more"
        changes.append(f"{split} had {old['size']} samples and has {new['size']}: {counts}")
    elif not changes and not torch.equal(old["names"], new["names"]):
        changes.append(f"the samples of {split} are in another order, or not as many times in it")
    elif not changes and old["digest"] != new["digest"]:
        changes.append(f"labels of {split} differ")
    return changes


def _changes(key: str, old: Any, new: Any) -> list[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        both = dict.fromkeys([*old, *new])
        return [
            text
            for name in both
            for text in _changes(f"{key}.{name}", old.get(name, "nothing"), new.get(name, "nothing"))
        ]
    if isinstance(old, list) and isinstance(new, list) and old != new:
        return [f"{key} {_list_change(old, new)}"]
    same = torch.equal(old, new) if isinstance(old, Tensor) and isinstance(new, Tensor) else old == new
    return [] if same else [f"{key} was {_shown(old)} and is {_shown(new)}"]


def _list_change(old: list[Any], new: list[Any]) -> str:
    before, after = set(map(repr, old)), set(map(repr, new))
    gone, added = [x for x in old if repr(x) not in after], [x for x in new if repr(x) not in before]
    if not (gone or added) or any(isinstance(x, float) for x in (*old, *new)):
        return f"was {_shown(old)} and is {_shown(new)}"
    words = [f"lacks {_few(gone)}"] if gone else []
    return " and ".join([*words, *([f"has the new {_few(added)}"] if added else [])])


def _few(values: list[Any]) -> str:
    more = f" and {len(values) - SHOWN} more" if len(values) > SHOWN else ""
    return ", ".join(map(repr, values[:SHOWN])) + more


def _shown(value: Any) -> str:
    text = f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else str(value)
    return text if len(text) <= 100 else f"{text[:100]}…"


def _plain(key: str, value: Any) -> Any:
    """The same in plain types: NumPy's numbers and arrays and tuples become Python's."""
    if isinstance(value, Mapping):
        return {name: _plain(f"{key}.{name}", item) for name, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(key, value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(key, item) for item in value]
    if value is None or isinstance(value, str | int | float | bool | Tensor):
        return value
    raise ValueError(
        f"data.{key} has a {type(value).__name__}; accepted are text, numbers, tensors, and lists and dicts of them."
    )
