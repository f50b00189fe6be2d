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
from pandas.api.types import is_bool_dtype, is_datetime64_any_dtype, is_numeric_dtype

from mtl.data.input_columns import InputColumn
from mtl.data.tables import Files
from mtl.data.tokenizer import Tokenizer

if TYPE_CHECKING:
    pass


class Rows:
    """What a row of a table becomes: ``numbers``, float32 ``[p]``, and ``categories``, int64 ``[q]``.

    ``inputs`` are the columns that it reads, as InputColumn or as its fields. A number is standardised, and 0 where it
    is missing; a category that no training row has is 0, as a missing one is. Other columns of a row are ignored.
    With a column of free text, or a pair of two, also ``text``: what the ``tokenizer``, the content of a
    tokenizer.json, makes of it in ``length`` tokens, see mtl.data.tokenizer; a missing text is empty. Where that column
    is the only input, a text alone is a row, too.

    Raises ValueError for a row that lacks a column, and for a value that the column does not take, with its row.
    """

    takes = "row"

    def __init__(
        self, inputs: Sequence[InputColumn | Mapping[str, Any]], tokenizer: str | None = None, length: int = 128
    ) -> None:
        self.inputs = tuple(own if isinstance(own, InputColumn) else _column(own) for own in inputs)
        self.columns = [own.name for own in self.inputs]
        self.texts = [own.name for own in self.inputs if own.kind == "text"]
        if len(self.texts) > 2:
            raise ValueError(f"{', '.join(self.texts)} are columns of text, and two can be read; use data.exclude.")
        self.tokenizer = None if tokenizer is None else Tokenizer(tokenizer, length)
        self._numbers = [own for own in self.inputs if own.kind in ("number", "date")]
        self._categories = [own for own in self.inputs if own.kind == "category"]

    def __call__(self, row: Mapping[str, Any] | str) -> dict[str, Any]:
        """The tensors of one row, a value by its column's name; None is a missing one."""
        if isinstance(row, str) and self.columns == self.texts[:1]:
            row = {self.texts[0]: row}
        if not isinstance(row, Mapping):
            raise ValueError(f"a row must be a dict of {', '.join(self.columns)}, but it is a {type(row).__name__}.")
        return one(self.batch(pd.DataFrame([dict(row)])))

    def batch(self, rows: pd.DataFrame) -> dict[str, Any]:
        """The tensors of many rows, ``[N, p]`` and ``[N, q]``."""
        numbers, categories = self.encode(rows)
        return self.tensors(numbers, categories, self.find_texts(rows))

    def tensors(self, numbers: NDArray[Any], categories: NDArray[Any], texts: NDArray[Any]) -> dict[str, Any]:
        """What :meth:`encode` and :meth:`find_texts` give of some rows as a model reads it."""
        import torch

        inputs = {"numbers": torch.from_numpy(numbers), "categories": torch.from_numpy(categories.astype(np.int64))}
        return inputs | ({} if self.tokenizer is None else {"text": self.tokenizer.encode(raw_texts(texts))})

    def find_texts(self, rows: Any) -> NDArray[Any]:
        """The cells of text, ``[N, 0 to 2]``, empty where there is none."""
        found = [
            rows[name].astype(object).where(rows[name].notna(), "").astype(str).to_numpy(object) for name in self.texts
        ]
        return np.stack(found, 1) if found else np.empty((len(rows), 0), object)

    def encode(self, rows: Any, file: Path | Files | None = None) -> tuple[NDArray[Any], NDArray[Any]]:
        """The numbers, float32 ``[N, p]``, and the categories, int32 ``[N, q]``, of rows, of a ``file`` or none."""
        file = Given(len(rows)) if file is None else file
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
        state = {"_target_": "mtl.data.table_rows.Rows", "inputs": [asdict(own) for own in self.inputs]}
        own = self.tokenizer
        return state if own is None else state | {"tokenizer": own.content, "length": own.length}

    @property
    def input_info(self) -> dict[str, Any]:
        """How many numbers there are, and how many values each category has, with 0 for another one."""
        return {
            "numbers": sum(own.width for own in self._numbers),
            "categories": [len(own.values) + 1 for own in self._categories],
            **({} if self.tokenizer is None else self.tokenizer.input_info),
        }


def one(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The only sample of a batch."""
    return {name: one(own) if isinstance(own, Mapping) else own[0] for name, own in batch.items()}


def raw_texts(texts: NDArray[Any]) -> list[Any]:
    """Cells ``[N, 1 or 2]`` as texts, or as pairs."""
    return texts[:, 0].tolist() if texts.shape[1] == 1 else [tuple(pair) for pair in texts.tolist()]


class Given(Files):
    """Rows that come from no file, and are counted from 0."""

    def __init__(self, count: int) -> None:
        super().__init__({})
        self._count = count

    def __str__(self) -> str:
        return "the row" if self._count == 1 else "the rows"

    def row(self, place: int) -> str:
        """The row at a place."""
        return "the row" if self._count == 1 else f"row {place} of {self._count}, from 0"


def _column(own: Mapping[str, Any]) -> InputColumn:
    return InputColumn(**{f.name: _tuple(own[f.name]) for f in fields(InputColumn) if f.name in own})


def _tuple(value: Any) -> Any:
    return value if isinstance(value, str | bool) else tuple(value)


def _plain(own: pd.Series) -> pd.Series:
    """A column as it is read from a file: without the spaces that stand for no value."""
    if is_numeric_dtype(own) or is_bool_dtype(own) or is_datetime64_any_dtype(own):
        return own
    return own.where(own.map(lambda value: not isinstance(value, str) or bool(value.strip())), None)
