"""The columns of a table as targets: their kind, and their values as classes, binary labels or standardised numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from mtl.data.table_checks import Untrainable, how_to_name, is_mark
from mtl.data.tables import Files, first_row, row_of
from mtl.data.target_names import as_list

KINDS = ("class", "labels", "number", "count")
IGNORED = -100  # mtl.losses.IGNORED, written out as that file imports torch
FEW = 20  # integers with at most this many distinct values are classes


@dataclass(frozen=True)
class Column:
    """A target: its ``kind`` and its columns of the table.

    ``classes`` are the values of a class target, in the order of their indices. ``mean`` and ``std`` are the statistics
    of a number over the training rows, one per column.
    """

    kind: str
    columns: tuple[str, ...]
    classes: tuple[Any, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __str__(self) -> str:
        more = f" and {len(self.classes) - FEW} more" if len(self.classes) > FEW else ""
        return self.kind + (f" of {', '.join(map(repr, self.classes[:FEW]))}{more}" if self.classes else "")

    @property
    def width(self) -> int:
        """The number of outputs that a head needs."""
        return len(self.classes) if self.kind == "class" else len(self.columns)


def infer(table: pd.DataFrame, columns: Sequence[str], file: Path | Files) -> str:
    """The kind of a target with these columns; ValueError if they are ambiguous."""
    values = [table[column].dropna() for column in columns]
    for column, own in zip(columns, values, strict=True):
        if not len(own):
            raise ValueError(f"{file}: the column {column} is empty.")
    if len(columns) > 1:
        if all(own.isin([0, 1]).all() for own in values):
            return "labels"
        if all(is_numeric_dtype(own) for own in values):
            return "number"
        raise ValueError(f"{file}: the columns {', '.join(columns)} are neither all 0 and 1 nor all numbers.")
    (own,), (column,) = values, columns
    if is_numeric_dtype(own) and not is_bool_dtype(own):
        whole = bool((own % 1 == 0).all())
        return "class" if whole and own.nunique() <= FEW else "number"
    is_number = pd.to_numeric(own, errors="coerce").notna() if not is_boolean(own) else pd.Series(False, own.index)
    if is_number.mean() > 0.5:
        row = own.index[~is_number][0]  # below the header, from 0
        remedy = f"; if it marks a missing label, {how_to_name([own[row]])}" if is_mark(own[row]) else ""
        raise ValueError(
            f"{row_of(file, row)}: {column} is {own[row]}, but most values of this column are numbers{remedy}."
        )
    if len(own) > FEW and own.nunique() > len(own) / 2:
        raise ValueError(
            f"{file}: {column} has {own.nunique()} different texts in {len(own)} rows, too many for classes; name the "
            "columns that are targets, as in data.targets={breed: breed}."
        )
    return "class"


def encode(
    table: pd.DataFrame, name: str, kind: str, columns: tuple[str, ...], train: NDArray[np.bool_], file: Path | Files
) -> tuple[Column, NDArray[Any]]:
    """A target and its value in every row."""
    if kind not in KINDS:
        raise ValueError(f"kinds.{name}={kind} must be one of {', '.join(KINDS)}.")
    if kind == "class":
        if len(columns) > 1:
            raise ValueError(
                f"targets.{name}={list(columns)}: a class has one column; for several, use labels or number."
            )
        own = table[columns[0]]
        classes = sorted(own.dropna().unique().tolist(), key=lambda value: (isinstance(value, str), value))
        if len(classes) < 2:
            raise ValueError(f"{file}: {columns[0]} has {len(classes)} different values; a class needs two or more.")
        codes = pd.Categorical(own, categories=classes).codes.astype(np.int64)
        plain = (
            int(v) if isinstance(v, float) and v.is_integer() else v if isinstance(v, str | int | float) else str(v)
            for v in classes
        )  # an integer column with an empty cell is read as floats; and a checkpoint holds no dates
        return Column(kind, columns, tuple(plain)), np.where(codes < 0, IGNORED, codes)
    values = np.stack([to_numbers(table[column], kind, file) for column in columns], 1)
    if kind in ("labels", "count"):
        return Column(kind, columns), to_float32(values, values, columns, file)
    known = ~np.isnan(values[train])
    for column, own, seen in zip(columns, values[train].T, known.T, strict=True):
        if not own[seen].size or not np.ptp(own[seen]):  # rounding may give what is constant a deviation
            raise Untrainable(name, f"{file}: {column} is constant in the training rows, so it cannot be learnt.")
    mean, std = np.nanmean(values[train], 0), np.nanstd(values[train], 0)
    scaled = to_float32(values, (values - mean) / std, columns, file)
    return Column(kind, columns, (), tuple(mean.tolist()), tuple(std.tolist())), scaled


def encode_as(column: Column, table: pd.DataFrame, file: Path | Files) -> NDArray[Any]:
    """A target's value in every row, with the classes and statistics of the run that ``column`` comes from."""
    if column.kind == "class":
        own = table[column.columns[0]]
        index = {str(value): i for i, value in enumerate(column.classes)} | {v: i for i, v in enumerate(column.classes)}
        codes = np.array([index.get(value, index.get(str(value), -1)) for value in own.tolist()], np.int64)
        codes[own.isna()] = IGNORED
        if (codes == -1).any():
            row = first_row(codes == -1)
            raise ValueError(
                f"{row_of(file, row)}: {own.name} is {own.iloc[row]}, a class that the model does not know; "
                f"its classes are {', '.join(map(str, column.classes))}."
            )
        return codes
    values = np.stack([to_numbers(table[name], column.kind, file) for name in column.columns], 1)
    is_number = column.kind == "number"
    scaled = (values - np.array(column.mean)) / np.array(column.std) if is_number else values
    return to_float32(values, scaled, column.columns, file)


def known_columns(
    metadata: Mapping[str, Any], targets: Mapping[str, str | Sequence[str]] | None, kinds: Mapping[str, str] | None
) -> dict[str, Column]:
    """The targets in another run's metadata; ValueError if ``targets`` or ``kinds`` are given and differ from them."""
    known = {
        name: Column(own["kind"], *(tuple(own[key]) for key in ("columns", "classes", "mean", "std")))
        for name, own in metadata["targets"].items()
    }
    asked = {name: tuple(as_list(own)) for name, own in (targets or {}).items()}
    if asked and asked != {name: column.columns for name, column in known.items()}:
        trained = {name: column.columns for name, column in known.items()}
        raise ValueError(
            f"data.targets={_as_yaml(asked)} are not those that the model was trained with, {_as_yaml(trained)}; leave "
            "them out."
        )
    for name, kind in (kinds or {}).items():
        if name in known and known[name].kind != kind:
            raise ValueError(f"kinds.{name}={kind}, but the model was trained with {known[name].kind}.")
    return known


def _as_yaml(targets: Mapping[str, Sequence[str]]) -> str:
    """Targets as a configuration names them: {breed: breed, traits: [tame, spotted]}."""
    words = {name: own[0] if len(own) == 1 else f"[{', '.join(own)}]" for name, own in targets.items()}
    return "{" + ", ".join(f"{name}: {own}" for name, own in words.items()) + "}"


def to_numbers(own: pd.Series, kind: str, file: Path | Files) -> NDArray[np.float64]:
    """A column as numbers, NaN if missing; ValueError with the row for text, infinity, or what ``kind`` has not."""
    numbers = own.astype(float) if is_boolean(own.dropna()) else pd.to_numeric(own, errors="coerce").astype(float)
    fine = numbers.isin([0, 1]) if kind == "labels" else np.isfinite(numbers)
    if kind == "count":
        fine &= (numbers >= 0) & (numbers % 1 == 0)
    wrong = own.notna() & ~fine
    if wrong.any():
        row = first_row(wrong)
        accepted = {"labels": "0, 1", "count": "a whole number from 0 on"}.get(kind, "a finite number")
        raise ValueError(f"{row_of(file, row)}: {own.name} is {own.iloc[row]}; it must be {accepted} or empty.")
    return numbers.to_numpy(np.float64)


def to_float32(
    values: NDArray[np.float64], scaled: NDArray[np.float64], names: Sequence[str], file: Path | Files
) -> NDArray[np.float32]:
    """Numbers ``[N, columns]`` as they are ``scaled``, in 32 bits; ValueError with the row of one that has no such."""
    far = np.abs(scaled) > np.finfo(np.float32).max
    if far.any():
        row, column = np.argwhere(far)[0]
        raise ValueError(
            f"{row_of(file, row)}: {names[column]} is {values[row, column]:g}, too far from the other rows for a "
            "number of 32 bits; correct it, or leave it empty."
        )
    return scaled.astype(np.float32)


def is_boolean(own: pd.Series) -> bool:
    """Whether a column has truth values alone."""
    return is_bool_dtype(own) or (own.dtype == object and all(isinstance(value, bool) for value in own))
