"""Tables of labels in CSV or Parquet, as pandas reads them."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mtl.data.folder import errors_named_by
from mtl.data.image_paths import find_image_column
from mtl.data.table_checks import is_mark
from mtl.data.table_text import TEXT, decode, find_separator

log = logging.getLogger(__name__)

PARQUET = ".parquet"


def read_table(
    file: Path, image: str | None = None, missing: Sequence[Any] = (), folder: Path | None = None
) -> tuple[pd.DataFrame, str]:
    """Read a table of labels, with the column ``image`` as text; return it with that column's name.

    Without ``image`` it is the first column with paths of files in ``folder``. In a text file, commas, semicolons, tabs
    or | separate the columns, numbers may have decimal commas, and only an empty cell, NaN and the values in
    ``missing`` are missing labels, because None and NA may be names of classes. A column that only numbers the rows, as
    pandas writes it, is left out.
    """
    marks = [mark for value in missing for mark in _spellings("null" if value is None else value)]
    if file.suffix.lower() not in (*TEXT, PARQUET):
        raise ValueError(f"labels={file.name} must end in {', '.join(TEXT)} or {PARQUET}.")
    read = _read_parquet if file.suffix.lower() == PARQUET else _read_text
    with errors_named_by(file):
        table, name = read(file, image, marks, folder)
        if not len(table):
            raise ValueError("it has no rows")
    return table.drop(columns=[column for column in table if column != name and _is_index(table[column])]), name


def _read_parquet(file: Path, image: str | None, marks: Sequence[Any], folder: Path | None) -> tuple[pd.DataFrame, str]:
    table = _named(pd.read_parquet(file).reset_index(drop=True))
    name = image or _image_column(table, folder)
    for column in table.columns.drop(name, errors="ignore"):
        bare = table[column].map(lambda value: value.strip() if isinstance(value, str) else value)
        table[column] = table[column].mask(bare.isin(["", *marks]))
    return table, name


def _read_text(file: Path, image: str | None, marks: Sequence[Any], folder: Path | None) -> tuple[pd.DataFrame, str]:
    content = decode(file.read_bytes())
    separator = find_separator(content)
    read = partial(pd.read_csv, sep=separator, keep_default_na=False)
    texts = read(io.StringIO(content), dtype=str)
    name = image or _image_column(texts, folder)
    empty = {column: ["", "nan", "NaN", *(() if column == name else marks)] for column in texts.columns}
    for column, gaps in empty.items():  # a mark with spaces around it is one too
        gaps += [text for text in texts[column].unique() if text.strip() in gaps]
    table = _named(read(io.StringIO(content), na_values=empty, dtype={name: str}))
    for column in table.columns.drop(name, errors="ignore"):
        table[column] = _with_decimal_points(table[column], separator)
    return table, name


def _image_column(table: pd.DataFrame, folder: Path | None) -> str:
    return str(table.columns[0]) if folder is None or not len(table) else find_image_column(table, folder)


def _named(table: pd.DataFrame) -> pd.DataFrame:
    return table.set_axis([str(column) for column in table.columns], axis=1)


def _with_decimal_points(own: pd.Series, separator: str) -> pd.Series:
    """A column of texts as 5,25 as numbers; ValueError where the comma may also be one of thousands."""
    texts = own[own.map(lambda value: isinstance(value, str) and not is_mark(value))]
    if not len(texts) or not texts.str.fullmatch(r"[-+]?\d+(,\d+)*").all() or not texts.str.contains(",").any():
        return own
    if separator != ";" and texts.str.fullmatch(r"[-+]?\d{1,3}(,\d{3})*").all():
        raise ValueError(
            f"{own.name} has {texts[texts.str.contains(',')].iloc[0]}, whose comma may be that of decimals or of "
            "thousands; write the numbers with a decimal point"
        )
    if texts.str.count(",").max() > 1:
        return own
    log.info("%s has decimal commas", own.name)
    numbers = texts.str.replace(",", ".").astype(float)
    return (
        numbers.reindex(own.index)
        if len(texts) == own.notna().sum()
        else own.astype(object).where(~own.index.isin(texts.index), numbers.reindex(own.index))
    )


def _is_index(own: pd.Series) -> bool:
    """Whether a column only numbers the rows from 0 or 1 on, and is named so or has no name."""
    if not re.fullmatch(r"unnamed: \d+|id|idx|index|__index_level_0__", str(own.name).casefold()):
        return False
    numbers = pd.to_numeric(own, errors="coerce").to_numpy()
    return any(np.array_equal(numbers, np.arange(first, first + len(own))) for first in (0, 1))


def _spellings(mark: Any) -> list[Any]:
    """A mark as it may stand in a column of texts and in one of numbers."""
    number = pd.to_numeric(mark, errors="coerce")
    return [str(mark)] if pd.isna(number) else [str(mark), float(number)]


def first_row(wrong: Any) -> int:
    """The place of the first true row, from 0."""
    return int(np.flatnonzero(np.asarray(wrong))[0])


def row_number(place: int) -> int:
    """What a spreadsheet calls the row at a place below the header, which is row 1; of Parquet the same."""
    return int(place) + 2
