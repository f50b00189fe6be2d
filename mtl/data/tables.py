"""Tables of labels: reading them from CSV or Parquet, and sharing their rows out over the splits."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mtl.data.files import errors_named_by
from mtl.data.metadata import hash_names

log = logging.getLogger(__name__)


def read_table(file: Path, image: str | None = None, missing: Sequence[Any] = ()) -> pd.DataFrame:
    """Read a table of labels, with the column ``image`` (default: the first) as text.

    In a CSV file, only an empty cell, NaN and the values in ``missing`` are missing labels, because None and NA may be
    names of classes.
    """
    marks = [mark for value in missing for mark in _spellings("null" if value is None else value)]
    readers = {".csv": _read_csv, ".parquet": _read_parquet}
    if file.suffix not in readers:
        raise ValueError(f"labels={file.name} must end in {' or '.join(readers)}.")
    with errors_named_by(file):
        table = readers[file.suffix](file, image, marks).reset_index(drop=True)
        if not len(table):
            raise ValueError("it has no rows")
        return table.set_axis([str(column) for column in table.columns], axis=1)


def _spellings(mark: Any) -> list[Any]:
    """A mark as it may stand in a column of texts and in one of numbers."""
    number = pd.to_numeric(mark, errors="coerce")
    return [str(mark)] if pd.isna(number) else [str(mark), float(number)]


def _read_csv(file: Path, image: str | None, marks: Sequence[Any]) -> pd.DataFrame:
    columns = pd.read_csv(file, nrows=0).columns
    name = image or str(columns[0])
    empty = {column: ["", "nan", "NaN", *(() if column == name else marks)] for column in columns}
    return pd.read_csv(file, keep_default_na=False, na_values=empty, dtype={name: str})


def _read_parquet(file: Path, image: str | None, marks: Sequence[Any]) -> pd.DataFrame:
    table = pd.read_parquet(file)
    for column in table.columns:
        if column != (image or table.columns[0]):
            table[column] = table[column].mask(table[column].isin(marks))
    return table


def check_column(table: pd.DataFrame, column: str, key: str, file: Path) -> str:
    """The column's name; ValueError with the option ``key`` that names it where the table has no such column."""
    if column not in table.columns:
        raise ValueError(f"{key}={column} is no column of {file}; its columns are {', '.join(table.columns)}.")
    return column


def first_row(wrong: Any) -> int:
    """The number of the first true row, counted from 1 below the header."""
    return int(np.flatnonzero(np.asarray(wrong))[0]) + 1


def share_out(names: Sequence[str], shares: Mapping[str, float], file: Path) -> dict[str, str]:
    """The split of each name, by a hash: about ``shares`` of them are held out, the others are for training.

    A name's split does not depend on the other names, unless a split would be empty: it then takes the name whose hash
    is the nearest, and a warning says so.
    """
    places = hash_names(names).numpy().view(np.uint64) / 2.0**64
    edges = np.cumsum([0.0, *shares.values(), 1 - sum(shares.values())])
    parts = [*shares, "train"]
    found = np.searchsorted(edges[1:-1], places, side="right")
    for number, part in enumerate(parts):
        counts = np.bincount(found, minlength=len(parts))
        if not counts[number] and counts.max() > 1:
            distance = np.maximum(edges[number] - places, places - edges[number + 1])
            nearest = int(np.where(counts[found] > 1, distance, np.inf).argmin())
            found[nearest] = number
            log.warning(
                "%s: the hash of the names puts none of %d images into %s, so that it takes %s; with more images that "
                "one may be in another split.", file, len(names), part, names[nearest],
            )  # fmt: skip
    return {name: parts[number] for name, number in zip(names, found, strict=True)}
