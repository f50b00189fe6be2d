"""Which rows of a table are for training, validation and test; without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api.types import is_bool_dtype, is_datetime64_any_dtype, is_numeric_dtype

from mtl.data import SPLITS
from mtl.data.columns import is_boolean
from mtl.data.names import hash_names, share_out_hashes
from mtl.data.tables import Files, first_row, row_of

MISSING = 0x5BD1E995A1B2C3D4  # the number of an empty cell
ODD = 0x9E3779B97F4A7C15  # the golden ratio of 2^64, by which numbers are spread


def splits_of(own: pd.Series, file: Path | Files) -> NDArray[Any]:
    """The split of every row, which a column names; ValueError with the row of another value."""
    if not own.isin(SPLITS).all():
        row = first_row(~own.isin(SPLITS))
        raise ValueError(f"{row_of(file, row)}: {own.name} is {own.iloc[row]}; it must be {', '.join(SPLITS)}.")
    return own.to_numpy(dtype=object)


def check_shares(validation: float, test: float) -> Mapping[str, float]:
    """The shares that are held out; ValueError unless they leave something for training."""
    if min(validation, test) <= 0 or validation + test >= 1:
        raise ValueError(f"validation={validation} and test={test} must be above 0 and together below 1.")
    return {"test": test, "val": validation}


def split_by_hash(hashes: NDArray[np.uint64], shares: Mapping[str, float], file: Path | Files) -> NDArray[Any]:
    """The split of every row by the hash of its key or content, ``[N]``: equal rows are in one split."""
    places, rows = np.unique(hashes, return_inverse=True)
    found = share_out_hashes(places, shares, file, "keys", lambda i: row_of(file, first_row(rows == i)))
    return found[rows]


def hash_rows(table: Any) -> NDArray[np.uint64]:
    """A number for the content of every row, ``[N]``, whatever the order of the columns.

    The number 1, the number 1.0 and true are equal, and so are the spellings of no value.
    """
    total = np.zeros(len(table), np.uint64)
    for name in table.columns:
        own = hash_column(table[name]) ^ hash_names([name]).view(np.uint64)
        total += _spread(own)
    return _spread(total)


def hash_column(own: pd.Series) -> NDArray[np.uint64]:
    """A number for every value of a column, ``[N]``."""
    if is_datetime64_any_dtype(own):
        numbers = own.to_numpy("datetime64[ns]").astype(np.int64).view(np.uint64)
        return np.where(own.isna(), np.uint64(MISSING), _spread(numbers))
    if is_numeric_dtype(own) or is_bool_dtype(own) or is_boolean(own.dropna()):
        values = own.where(own.notna(), np.nan).astype("float64").to_numpy() + 0.0  # of -0.0, too
        return np.where(np.isnan(values), np.uint64(MISSING), _spread(values.view(np.uint64)))
    codes, values = pd.factorize(own)
    return np.append(hash_names(map(str, values)).view(np.uint64), np.uint64(MISSING))[codes]


def _spread(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Other numbers, one for each, of which all bits depend on all bits: the end of splitmix64."""
    numbers = numbers + np.uint64(ODD)
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
