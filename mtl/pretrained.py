"""Weights from a file, for any backbone: what they are, under which names, and what of them a model takes."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from mtl.errors import closest_path, first_line, require

log = logging.getLogger(__name__)

BY_ORDER = "by_order"
INSIDE = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict")  # where a file may keep its weights
OURS = {"format", "step", "config", "data", "model", "ema"}  # keys of a checkpoint of a run, see mtl.runs.checkpoint
WRAPPED = re.compile(r"_orig_mod\.|_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.")  # torch's own, anywhere
PREFIXES = ("module.", "model.", "backbone.")  # of wrappers, around names that the model itself translates
HARD = "mtl.architectures.Hard"


@dataclass
class Weights:
    """Tensors by their names in the file; ``source``: the file, and which part of it, in words.

    ``data_config``: mean and deviation of the pixels that they are for, where the file says so. ``model``: the timm
    model that they are of, where it says so.
    """

    tensors: dict[str, Tensor]
    source: str
    data_config: Mapping[str, Any] | None = None
    model: str | None = None


def read(path: str) -> Weights:
    """The weights of a file or a folder; no code of theirs is run.

    - a file of safetensors, or of ``torch.save`` with plain tensors, by their names or under one of the keys INSIDE;
    - a checkpoint of a run, or its folder, for the best one: the averaged weights, where the run has them;
    - a folder that timm or the Hugging Face hub has written, with config.json.

    ValueError, one sentence, for any other.
    """
    place = Path(path)
    if place.is_dir() and (place / "checkpoints").is_dir():
        place = next((f for n in ("best", "last") if (f := place / "checkpoints" / f"{n}.pt").is_file()), place)
    if place.is_dir():
        return _read_folder(place)
    if not place.is_file():
        raise ValueError(
            f"pretrained={path} is no file or folder; accepted are those, true and false{closest_path(place)}."
        )
    content = _read_file(place)
    if isinstance(content, Mapping) and content.keys() >= OURS:
        return _of_run(place, content)
    return _tensors(content, str(place))


def _read_folder(folder: Path) -> Weights:
    names = ("model.safetensors", "pytorch_model.bin")
    file = next((folder / name for name in names if (folder / name).is_file()), None)
    if file is None:
        raise ValueError(f"pretrained={folder} has no {' or '.join(names)}, nor checkpoints of a run.")
    weights, config = _tensors(_read_file(file), str(file)), folder / "config.json"
    said = json.loads(config.read_text()) if config.is_file() else {}
    pixels = said.get("pretrained_cfg") or {}
    if {"mean", "std"} <= pixels.keys():
        weights.data_config = {key: list(pixels[key]) for key in ("mean", "std")}
    weights.model = said.get("architecture")
    return weights


def _read_file(file: Path) -> Any:
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        if code := re.search(r"GLOBAL ([\w.]+)", str(error)):  # in the words of torch's unpickler
            raise ValueError(
                f"pretrained={file} holds more than tensors ({code[1]}), and reading it would run code from the file; "
                "save the tensors alone, with torch.save(model.state_dict(), …)."
            ) from error
        words = first_line(error).partition(". This file can still be loaded")[0]
        raise ValueError(
            f"pretrained={file} cannot be read as a file of torch.save, or of safetensors by its ending: {words}."
        ) from error


def _tensors(content: Any, source: str) -> Weights:
    """The tensors of a file, or those under the first of the keys INSIDE that it has."""
    if isinstance(content, Mapping):
        for key in INSIDE:
            if isinstance(content.get(key), Mapping):
                content, source = content[key], f"{source} ({key})"
                break
        tensors = {WRAPPED.sub("", str(name)): x for name, x in content.items() if isinstance(x, Tensor)}
        if tensors:
            return Weights(tensors, source)
    has = (
        f"has the keys {few([*map(str, content)])}"
        if isinstance(content, Mapping)
        else f"is a {type(content).__name__}"
    )
    raise ValueError(f"pretrained={source} has no tensors by name, as a state_dict: it {has}.")


def _of_run(file: Path, content: Mapping[str, Any]) -> Weights:
    """A checkpoint of ours: the model's weights, and the pixels that its data were normalised for."""
    architecture = (content["config"].get("architecture") or {}).get("_target_", HARD)
    if architecture != HARD:
        raise ValueError(
            f"pretrained={file} is of a run with {architecture}, whose trunk is no backbone by itself; a run with "
            "architecture=hard has one."
        )
    source = f"{file} (step {content['step']}{', averaged weights' if content['ema'] else ''})"
    trunk = {name: x for name, x in (content["ema"] or content["model"]).items() if name.startswith("backbone.")}
    return Weights(trunk, source, content["data"].get("normalize"))


# --------------------------------------------------------------------------------------------------------- names


def named_for(weights: Weights, own: Mapping[str, Tensor], mapping: str | None, head: Sequence[str] = ()) -> Weights:
    """The weights under the names of ``own``, a model's state; those of no such name keep theirs.

    With ``mapping=by_order`` the n-th tensor is the n-th of ``own``, and ValueError names the first whose shapes
    differ; ``head``: beginnings of the names whose shape is free. Otherwise the names count, behind the prefix under
    which most of them stand.
    """
    require("mapping", mapping, f"null or {BY_ORDER}", mapping in (None, BY_ORDER))
    if mapping == BY_ORDER:
        tensors = _by_order(weights, own, tuple(head))
    else:
        prefix = _prefix(weights, own)
        tensors = {name.removeprefix(prefix): x for name, x in weights.tensors.items() if name.startswith(prefix)}
        tensors |= {name: x for name, x in weights.tensors.items() if not name.startswith(prefix)}
    return Weights(tensors, weights.source, weights.data_config, weights.model)


def _by_order(weights: Weights, own: Mapping[str, Tensor], head: tuple[str, ...]) -> dict[str, Tensor]:
    names, theirs = ([name for name in state if not _is_count(name)] for state in (own, weights.tensors))
    for number, (name, key) in enumerate(zip(names, theirs, strict=False), 1):
        a, b = weights.tensors[key], own[name]
        if not is_lazy(b) and a.shape != b.shape and not name.startswith(head):
            raise ValueError(
                f"mapping={BY_ORDER}: tensor {number} of {weights.source} is {key} {list(a.shape)}, but that of the "
                f"model {name} {list(b.shape)}."
            )
    lacking = [name for name in names[len(theirs) :] if not name.startswith(head)]
    if lacking:
        raise ValueError(
            f"mapping={BY_ORDER}: {weights.source} has {len(theirs)} tensors, but the model {len(names)}; there "
            f"is none for {few(lacking)}."
        )
    pairs = ", ".join(f"{key} → {name}" for key, name in list(zip(theirs, names, strict=False))[:2])
    log.info("%s: taken in its order, by which names and meaning are not compared: %s, …", weights.source, pairs)
    tensors = {name: weights.tensors[key] for name, key in zip(names, theirs, strict=False)}
    return tensors | {key: weights.tensors[key] for key in theirs[len(names) :]}


def _prefix(weights: Weights, own: Mapping[str, Tensor]) -> str:
    """What stands before the names of ``own`` in most of the file's; a warning where another part fits as well."""
    found: Counter[str] = Counter()
    for key in weights.tensors:
        parts = key.split(".")
        found.update(".".join([*parts[:n], ""]) for n in range(len(parts)) if ".".join(parts[n:]) in own)
    if not found:
        prefix = ""
        while more := next((p for p in PREFIXES if any(key.startswith(prefix + p) for key in weights.tensors)), ""):
            prefix += more
        return prefix
    best = max(found.values())
    prefix, *others = sorted((prefix for prefix, count in found.items() if count == best), key=len)
    if others:
        log.warning(
            "%s fits under %s as well as under %s: the former is taken; save one alone to choose",
            weights.source, prefix or "no prefix", " and ".join(others),
        )  # fmt: skip
    return prefix


# ------------------------------------------------------------------------------------------------------- loading


def load(module: nn.Module, path: str, mapping: str | None = None) -> None:
    """Load the weights at ``path`` into any module, and say what was taken.

    ValueError where none fits, or where some have another shape.
    """
    own, name = module.state_dict(), type(module).__name__
    weights = named_for(read(path), own, mapping)
    tensors, source = weights.tensors, weights.source
    other = [k for k, x in own.items() if k in tensors and not is_lazy(x) and tensors[k].shape != x.shape]
    if other:
        shapes = [f"{k} is {list(tensors[k].shape)} in the file and {list(own[k].shape)} in the model" for k in other]
        raise ValueError(f"the weights in {source} cannot be loaded into {name}: {few(shapes)}.")
    result = module.load_state_dict(tensors, strict=False)
    report(name, source, [*own], result.missing_keys, result.unexpected_keys)


def report(name: str, source: str, own: Sequence[str], missing: Sequence[str], left_over: Sequence[str]) -> None:
    """Say in a line what a model, with the tensors ``own``, has taken; a warning where its trunk is not all of it.

    Left-over weights of a head are normal; those inside of the model's own parts are of a larger network. ValueError
    where nothing was taken. torch takes a missing count of batches for 0, and here it does not count either.
    """
    own, missing = ([key for key in keys if not _is_count(key)] for keys in (own, missing))
    left_over = [key for key in left_over if not _is_count(key)]
    if own and len(missing) == len(own):
        raise ValueError(
            f"none of the keys in {source} fits {name}: they are {few(left_over)}, but it has {few(own)}; "
            f"backbone.mapping={BY_ORDER} takes those of the same network under other names in their order."
        )
    parts = {key.partition(".")[0] for key in own if "." in key}
    inside = [key for key in left_over if key.partition(".")[0] in parts]
    words = f"{source}: {len(own) - len(missing)} of the {len(own)} tensors of {name} are loaded"
    if missing:
        words += f"; MISSING, and so random: {len(missing)}, {few(missing)}"
    if left_over:
        words += f"; left over: {len(left_over)}, {few(left_over)}"
    if inside:
        words += f"; THE FILE IS OF ANOTHER NETWORK, with {len(inside)} more inside of {name}: {few(inside)}"
    log.log(logging.WARNING if missing or inside else logging.INFO, "%s", words)


def _is_count(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def few(keys: Sequence[str]) -> str:
    """The first three, and how many more there are."""
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
