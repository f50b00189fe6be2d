"""Labels for the rows of a comparison: each names only the settings that distinguish its row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Settings = Mapping[str, Any]
PARTS = ("data", "backbone", "architecture", "strategy", "weighting", "optimizer", "scheduler")  # each has a _target_
ABSENT = "absent"


def class_name(settings: Settings, part: str) -> str:
    """The class name of a part of the configuration; for a strategy with a rule, the rule's."""
    target = settings.get(f"{part}.rule._target_") or settings.get(f"{part}._target_") or ""
    return str(target).rpartition(".")[2]


def is_unbalanced(settings: Settings) -> bool:
    """Whether the strategy is one of mtl's without a rule: it follows the gradient of the weighted losses.

    A strategy from elsewhere may do anything, so it does not count as unbalanced.
    """
    own = str(settings.get("strategy._target_", "")).startswith("mtl.strategies.")
    return own and "strategy.rule._target_" not in settings


def differing_keys(groups: Sequence[Settings]) -> list[str]:
    """The keys whose values differ between the groups; of keys that always change together, the shortest."""
    keys = dict.fromkeys(key for settings in groups for key in settings)
    columns = {key: tuple(settings.get(key, ABSENT) for settings in groups) for key in keys}
    found: dict[tuple, str] = {}
    for key, column in columns.items():
        if len(set(column)) > 1 and len(key) < len(found.get(column, key + "x")):
            found[column] = key
    return [key for key in columns if key in found.values()]


def differences(groups: Sequence[Settings], limit: int = 6) -> list[str]:
    """In what the groups differ, in words: the parts with their classes, then keys that differ within one class."""
    words, keys = [], differing_keys(groups)
    for part in PARTS:
        names = list(dict.fromkeys(class_name(settings, part) or ABSENT for settings in groups))
        if len(names) > 1:
            words.append(f"{part} ({', '.join(names) if len(names) <= limit else f'{len(names)} classes'})")
    for key in keys:
        if key.endswith("_target_") or not _differs_within_a_class(groups, key):
            continue
        values = list(dict.fromkeys(_format(settings.get(key, ABSENT)) for settings in groups))
        short = len(values) <= limit and sum(map(len, values)) < 60
        words.append(f"{key} ({', '.join(values)})" if short else f"{key} ({len(values)} values)")
    return words


def _differs_within_a_class(groups: Sequence[Settings], key: str) -> bool:
    """Whether a key differs between groups of the same class: arguments of different classes cannot be compared."""
    part = key.partition(".")[0]
    values: dict[str, set[str]] = {}
    for settings in groups:
        values.setdefault(class_name(settings, part) if part in PARTS else "", set()).add(
            str(settings.get(key, ABSENT))
        )
    return any(len(found) > 1 for found in values.values())


def interpolations_of(groups: Sequence[Settings], keys: Sequence[str]) -> set[str]:
    """``keys``, the keys below them, and every key whose value equals one of them in each group (an interpolation)."""
    every = {key for settings in groups for key in settings}
    return {
        other
        for key in keys
        for other in every
        if key == other or other.startswith(f"{key}.") or _are_interpolations(groups, key, other)
    }


def _are_interpolations(groups: Sequence[Settings], key: str, other: str) -> bool:
    pairs = [(settings.get(key, ABSENT), settings.get(other, ABSENT)) for settings in groups]
    return len({a for a, _ in pairs}) > 1 and all(a == b for a, b in pairs)


def row_labels(groups: Sequence[Settings], hidden: set[str]) -> list[str]:
    """One label per group of runs: strategy, weighting, and the keys that differ among groups of the same classes.

    Labels omit the ``hidden`` keys.
    """
    keys = [key for key in differing_keys(groups) if key not in hidden]
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
    implied = shorten and is_unbalanced(settings) and (alone is not None or weighting != "Equal")
    method = " + ".join(([] if implied else [strategy]) + ([] if weighting in ("Equal", "") else [weighting]))
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
        # Arguments of different classes cannot be compared, even if they share a name.
        alike = [
            other for other in groups if part not in PARTS or class_name(other, part) == class_name(settings, part)
        ]
        if len({str(other.get(key, ABSENT)) for other in alike}) > 1:
            words.append(f"{_shorten(key)}={_format(settings[key])}")
    return " ".join(words)


def _shorten(key: str) -> str:
    for prefix in ("weighting.weights.", "weighting.", "strategy.rule.", "strategy."):
        if key.startswith(prefix):
            return key.removeprefix(prefix)
    return key


def _format(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
