"""Whether the files that a table is made of have the same columns, of the same kinds; without torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from pandas.api.types import is_datetime64_any_dtype, is_numeric_dtype

from mtl.data.columns import is_boolean
from mtl.data.tables import Files


def check_alike(
    first: Path | Files, table: pd.DataFrame, other: Path | Files, own: pd.DataFrame, columns: Iterable[str]
) -> None:
    """ValueError where one of two files lacks one of the ``columns``, or has values of another kind in it."""
    for column in columns:
        for file, part, there in ((other, own, first), (first, table, other)):
            if column not in part.columns:
                raise ValueError(f"{file} has no column {column}, which {there} has.")
        kinds = [_kind(part[column].dropna()) for part in (table, own)]
        if None not in kinds and kinds[0] != kinds[1]:
            raise ValueError(f"{column} has {kinds[0]} in {first} and {kinds[1]} in {other}.")


def _kind(known: pd.Series) -> str | None:
    """What a column's values are, in a word; None without any."""
    if not len(known):
        return None
    if is_boolean(known):
        return "truth values"
    if is_datetime64_any_dtype(known):
        return "dates"
    return "numbers" if is_numeric_dtype(known) else "text"
