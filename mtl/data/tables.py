"""Tables in CSV or Parquet, as pandas reads them."""

from __future__ import annotations

import io
import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mtl.data.folder import errors_named_by
from mtl.data.image_paths import find_image_column
from mtl.data.table_checks import is_mark
from mtl.data.table_text import TEXT, check_rows, decode, find_separator, header_of

log = logging.getLogger(__name__)

PARQUET = ".parquet"


FindText = Callable[[pd.DataFrame], str | None]  # the column that stays text, if there is one


def read_table(
    file: Path, image: str | None = None, missing: Sequence[Any] = (), folder: Path | None = None
) -> tuple[pd.DataFrame, str]:
    """Read a table of labels, with the column ``image`` as text; return it with that column's name.

    Without ``image`` it is the first column with paths of files in ``folder``. The rest is as :func:`read_rows` says.
    """
    table, name = _read("labels", file, missing, lambda texts: image or _image_column(texts, folder))
    return table, str(name)


def read_rows(file: Path, missing: Sequence[Any] = ()) -> pd.DataFrame:
    """Read a table.

    In a text file, commas, semicolons, tabs or | separate the columns, numbers may have decimal commas, and only an
    empty cell, NaN and the values in ``missing`` are missing, because None and NA may be names of classes. A column
    that only numbers the rows, as pandas writes it, is left out. ValueError for two columns of one name.
    """
    return _read("file", file, missing, lambda texts: None)[0]


def _read(key: str, file: Path, missing: Sequence[Any], find_text: FindText) -> tuple[pd.DataFrame, str | None]:
    marks = spellings_of(missing)
    check_ending(key, file)
    read = _read_parquet if is_parquet(file) else _read_text
    with errors_named_by(file):
        table, name = read(file, find_text, marks)
        if not len(table):
            raise ValueError("it has no rows")
    return table.drop(columns=[column for column in table if column != name and is_index(table[column])]), name


def check_ending(key: str, file: Path) -> None:
    """ValueError, with the option ``key`` that names it, for a file that ends like no table."""
    if file.suffix.lower() not in (*TEXT, PARQUET):
        raise ValueError(f"{key}={file.name} must end in {', '.join(TEXT)} or {PARQUET}.")


def is_parquet(file: Path) -> bool:
    """Whether the file's name says that it is Parquet."""
    return file.suffix.lower() == PARQUET


def spellings_of(missing: Sequence[Any]) -> list[Any]:
    """All values that the marks of missing values may have been read as."""
    return [mark for value in missing for mark in _spellings("null" if value is None else value)]


def _read_parquet(file: Path, find_text: FindText, marks: Sequence[Any]) -> tuple[pd.DataFrame, str | None]:
    table = _named(pd.read_parquet(file).reset_index(drop=True))
    name = find_text(table)
    for column in table.columns.drop(name or [], errors="ignore"):
        bare = table[column].map(lambda value: value.strip() if isinstance(value, str) else value)
        table[column] = table[column].mask(bare.isin(["", *marks]))
    return table, name


def _read_text(file: Path, find_text: FindText, marks: Sequence[Any]) -> tuple[pd.DataFrame, str | None]:
    content = decode(file.read_bytes())
    separator = find_separator(content)
    check_different(header_of(content, separator))
    check_rows(content, separator)
    read = partial(pd.read_csv, sep=separator, keep_default_na=False)
    texts = read(io.StringIO(content), dtype=str)
    name = find_text(texts)
    empty = {column: ["", "nan", "NaN", *(() if column == name else marks)] for column in texts.columns}
    for column, gaps in empty.items():  # a mark with spaces around it is one too
        gaps += [text for text in texts[column].unique() if text.strip() in gaps]
    table = _named(read(io.StringIO(content), na_values=empty, dtype={} if name is None else {name: str}))
    for column in table.columns.drop(name or [], errors="ignore"):
        table[column] = with_decimal_points(table[column], separator)
    return table, name


def check_different(names: Sequence[str]) -> None:
    """ValueError for two columns of one name."""
    twice = [name for name, count in Counter(names).items() if count > 1 and name]
    if twice:
        raise ValueError(f"two columns have the name {twice[0]}; rename one of them")


def _image_column(table: pd.DataFrame, folder: Path | None) -> str:
    return str(table.columns[0]) if folder is None or not len(table) else find_image_column(table, folder)


def _named(table: pd.DataFrame) -> pd.DataFrame:
    return table.set_axis([str(column) for column in table.columns], axis=1)


def with_decimal_points(own: pd.Series, separator: str) -> pd.Series:
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


def is_index_name(name: str) -> bool:
    """Whether a column that numbers the rows may have such a name, or none."""
    return re.fullmatch(r"unnamed: \d+||id|idx|index|__index_level_0__", name.casefold()) is not None


def is_index(own: pd.Series) -> bool:
    """Whether a column only numbers the rows from 0 or 1 on, and is named so or has no name."""
    if not is_index_name(str(own.name)):
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


class Files:
    """The files that the rows of a table come from, one below the other: its text names them."""

    def __init__(self, sizes: Mapping[Path, int], first: int = 0) -> None:
        self.sizes, self.first = dict(sizes), first

    def __str__(self) -> str:
        return ", ".join(map(str, self.sizes))

    def row(self, place: int) -> str:
        """The file and the row at a place from ``first`` on, from 0, as ``train.csv, row 2``."""
        place += self.first
        for file, size in self.sizes.items():
            if place < size:
                return f"{file}, row {row_number(place)}"
            place -= size
        raise IndexError(place)


def row_of(source: Path | Files, place: int) -> str:
    """What an error calls the row at a place, from 0: the file, and the number of the row."""
    return source.row(place) if isinstance(source, Files) else f"{source}, row {row_number(place)}"


def row_number(place: int) -> int:
    """What a spreadsheet calls the row at a place below the header, which is row 1; of Parquet the same."""
    return int(place) + 2
