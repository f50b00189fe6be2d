"""What to call the lines of a comparison: by what tells them apart, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Settings = Mapping[str, Any]
PARTS = ("data", "backbone", "strategy", "weighting", "optimizer", "scheduler")  # each has a _target_
PLAIN = ("Naive", "Detached")  # the strategies that leave the gradients as they are
ABSENT = "absent"


def class_name(settings: Settings, part: str) -> str:
    """The class of a part of the configuration; of a strategy with a rule, the rule's."""
    target = settings.get(f"{part}.rule._target_") or settings.get(f"{part}._target_") or ""
    return str(target).rpartition(".")[2]


def differing(groups: Sequence[Settings]) -> list[str]:
    """The keys whose values are not the same in all; of keys that always change together, the shortest."""
    keys = dict.fromkeys(key for settings in groups for key in settings)
    columns = {key: tuple(settings.get(key, ABSENT) for settings in groups) for key in keys}
    found: dict[tuple, str] = {}
    for key, column in columns.items():
        if len(set(column)) > 1 and len(key) < len(found.get(column, key + "x")):
            found[column] = key
    return [key for key in columns if key in found.values()]


def interpolations_of(groups: Sequence[Settings], keys: Sequence[str]) -> set[str]:
    """The keys with, in every group, the same value as one of ``keys``: interpolations of it, and itself."""
    every = {key for settings in groups for key in settings}
    return {
        other
        for key in keys
        for other in every
        if key == other or other.startswith(f"{key}.") or _same(groups, key, other)
    }


def _same(groups: Sequence[Settings], key: str, other: str) -> bool:
    pairs = [(settings.get(key, ABSENT), settings.get(other, ABSENT)) for settings in groups]
    return len({a for a, _ in pairs}) > 1 and all(a == b for a, b in pairs)


def label_all(groups: Sequence[Settings], hidden: set[str]) -> list[str]:
    """One name a group of runs: its strategy and weighting, and the keys that tell it from those of the same kind.

    ``hidden`` keys are not mentioned.
    """
    keys = [key for key in differing(groups) if key not in hidden]
    short = [_label(settings, groups, keys, shorten=True) for settings in groups]
    full = [_label(settings, groups, keys, shorten=False) for settings in groups]
    labels = [a if short.count(a) == 1 else b for a, b in zip(short, full, strict=True)]
    return [
        label if labels.count(label) == 1 else f"{label} #{labels[: i + 1].count(label)}"
        for i, label in enumerate(labels)
    ]


def _label(settings: Settings, groups: Sequence[Settings], keys: Sequence[str], shorten: bool) -> str:
    chosen = settings.get("tasks")
    alone = None if chosen in (None, ABSENT) else str(chosen).strip("[]").replace('"', "")
    strategy, weighting = class_name(settings, "strategy"), class_name(settings, "weighting")
    plain = shorten and strategy in PLAIN and (alone is not None or weighting != "Equal")
    method = " + ".join(([] if plain else [strategy]) + ([] if weighting in ("Equal", "") else [weighting]))
    words = [] if alone is None else [f"{alone} alone" if "," not in alone else f"tasks {alone}"]
    words += [method] if method else []
    for part in PARTS:
        name = class_name(settings, part)
        if part not in ("strategy", "weighting") and len({class_name(other, part) for other in groups}) > 1:
            words.append(name)
    for key in keys:
        part = key.partition(".")[0]
        if key.endswith("_target_") or key == "tasks" or key not in settings:
            continue
        # A key of a part means something only beside others with the same class in that part.
        alike = [
            other for other in groups if part not in PARTS or class_name(other, part) == class_name(settings, part)
        ]
        if len({str(other.get(key, ABSENT)) for other in alike}) > 1:
            words.append(f"{_short(key)}={_number(settings[key])}")
    return " ".join(words)


def _short(key: str) -> str:
    for prefix in ("weighting.weights.", "weighting.", "strategy.rule.", "strategy."):
        if key.startswith(prefix):
            return key.removeprefix(prefix)
    return key


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
