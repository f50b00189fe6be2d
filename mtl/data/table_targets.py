"""The targets of a table: which columns they are, and their values in every row; without torch."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtl.data.columns import Column, encode, encode_as, infer
from mtl.data.table_checks import check_labelled, inspect
from mtl.data.table_text import check_column
from mtl.data.tables import Files
from mtl.data.target_names import as_list, target_name

log = logging.getLogger(__name__)


def encode_targets(
    table: Any,
    wanted: Mapping[str, str | Sequence[str]],
    kinds: Mapping[str, str],
    train: NDArray[np.bool_],
    known: Mapping[str, Column],
    file: Path | Files,
) -> tuple[dict[str, Column], dict[str, NDArray[Any]]]:
    """The targets, and their values in every row; ``known`` are those of another run."""
    found: dict[str, Column] = {}
    values: dict[str, NDArray[Any]] = {}
    for name, own in wanted.items():
        columns = tuple(check_column(table.columns, c, f"targets.{name}", file) for c in as_list(own))
        if name in known:
            found[name], values[name] = known[name], encode_as(known[name], table, file)
            continue
        kind = kinds.get(name) or infer(table, columns, file)
        check_labelled(str(file), name, kind, table[list(columns)], train)
        found[name], values[name] = encode(table, name, kind, columns, train, file)
    return found, values


def count_labels(
    table: Any, name: str, own: Column, parts: NDArray[Any], missing: Sequence[Any] | None, file: Path | Files
) -> str:
    """How many labels of what each split has, logged with warnings of likely mistakes."""
    counts = inspect(f"{file}: {name}", own.kind, table[list(own.columns)], parts, missing)
    log.info("%s: %s", name, counts)
    return counts


def class_names_of(columns: Mapping[str, Column]) -> dict[str, tuple[Any, ...]]:
    """The names of a target's classes, or of its columns where it has several."""
    return {
        name: own.classes if own.kind == "class" else own.columns
        for name, own in columns.items()
        if own.classes or own.width > 1
    }


def scales_of(columns: Mapping[str, Column]) -> dict[str, tuple[tuple[float, ...], tuple[float, ...]]]:
    """Mean and deviation of the standardised numbers."""
    return {name: (own.mean, own.std) for name, own in columns.items() if own.kind == "number"}


def targets_of(columns: Iterable[str], file: Path | Files) -> dict[str, str]:
    """A target for each of the columns; ValueError if two have one name as a target."""
    own = list(columns)
    names = [target_name(column) for column in own]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{file}: two columns have the target name {name}; name them in data.targets.")
    return dict(zip(names, own, strict=True))
