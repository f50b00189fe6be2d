"""A table's rows as the inputs of a model; torch is imported where tensors are made."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mtl.data.input_columns import InputColumn
from mtl.data.tables import Files

if TYPE_CHECKING:
    from torch import Tensor


class Rows:
    """What a row of a table becomes: ``numbers``, float32 ``[p]``, and ``categories``, int64 ``[q]``.

    ``inputs`` are the columns that it reads, as InputColumn or as its fields. A number is standardised, and 0 where it
    is missing; a category that no training row has is 0, as a missing one is. Other columns of a row are ignored.

    Raises ValueError for a row that lacks a column, and for a value that the column does not take, with its row.
    """

    takes = "row"

    def __init__(self, inputs: Sequence[InputColumn | Mapping[str, Any]]) -> None:
        self.inputs = tuple(own if isinstance(own, InputColumn) else _column(own) for own in inputs)
        self.columns = [own.name for own in self.inputs]
        self._numbers = [own for own in self.inputs if own.kind != "category"]
        self._categories = [own for own in self.inputs if own.kind == "category"]

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Tensor]:
        """The tensors of one row, a value by its column's name; None is a missing one."""
        return {name: own[0] for name, own in self.batch(pd.DataFrame([dict(row)])).items()}

    def batch(self, rows: pd.DataFrame) -> dict[str, Tensor]:
        """The tensors of many rows, ``[N, p]`` and ``[N, q]``."""
        import torch

        numbers, categories = self.encode(rows)
        return {"numbers": torch.from_numpy(numbers), "categories": torch.from_numpy(categories.astype(np.int64))}

    def encode(self, rows: Any, file: Path | Files = Path("the rows")) -> tuple[NDArray[Any], NDArray[Any]]:
        """The numbers, float32 ``[N, p]``, and the categories, int32 ``[N, q]``, of rows that came from ``file``."""
        self.check(rows.columns, file)
        numbers = [own.numbers(_plain(rows[own.name]), file) for own in self._numbers]
        codes = [own.codes(_plain(rows[own.name])) for own in self._categories]
        count = len(rows)
        return (
            np.concatenate(numbers, 1) if numbers else np.empty((count, 0), np.float32),
            np.stack(codes, 1) if codes else np.empty((count, 0), np.int32),
        )

    def check(self, columns: Collection[Any], file: Path | Files) -> None:
        """ValueError, with the closest name, for an input that is not among the ``columns`` of a table."""
        for name in self.columns:
            if name not in columns:
                close = difflib.get_close_matches(name, list(map(str, columns)), n=1)
                hint = f"did you mean it by {close[0]}" if close else "give it, or None where it has no value"
                raise ValueError(f"{file}: there is no column {name}; {hint}.")

    def state(self) -> dict[str, Any]:
        """The same in plain values, with the class that takes them."""
        return {"_target_": "mtl.data.table_rows.Rows", "inputs": [asdict(own) for own in self.inputs]}

    @property
    def input_info(self) -> dict[str, Any]:
        """How many numbers there are, and how many values each category has, with 0 for another one."""
        return {
            "numbers": sum(own.width for own in self._numbers),
            "categories": [len(own.values) + 1 for own in self._categories],
        }


def _column(own: Mapping[str, Any]) -> InputColumn:
    return InputColumn(**{f.name: _tuple(own[f.name]) for f in fields(InputColumn) if f.name in own})


def _tuple(value: Any) -> Any:
    return value if isinstance(value, str | bool) else tuple(value)


def _plain(own: pd.Series) -> pd.Series:
    """A column as it is read from a file: without the spaces that stand for no value."""
    if own.dtype != object:
        return own
    return own.where(own.map(lambda value: not isinstance(value, str) or bool(value.strip())), None)
