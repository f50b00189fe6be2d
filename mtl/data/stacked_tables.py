"""Several tables below each other, each with a target of its own, as inputs and targets; without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mtl.data import SPLITS
from mtl.data.columns import Column, infer, known_columns
from mtl.data.table_alike import check_alike
from mtl.data.table_cache import check_unchanged, stamps
from mtl.data.table_checks import check_all_splits
from mtl.data.table_inputs import learn_inputs
from mtl.data.table_leaks import find_leaks
from mtl.data.table_rows import Rows
from mtl.data.table_splits import check_shares, hash_column, hash_rows, split_by_hash, splits_of
from mtl.data.table_targets import count_labels, encode_targets
from mtl.data.table_text import check_column
from mtl.data.tables import Files, read_rows
from mtl.errors import suggestion


class _Table(NamedTuple):
    """The rows of a table, their file, and their place among the rows of all."""

    rows: pd.DataFrame
    file: Files
    place: slice


class StackedTables:
    """What mtl.data.domain_tables.DomainTables knows of its tables; the arguments and the errors are described there.

    ``columns`` are the tasks' targets and ``rows`` makes the inputs; ``left_out`` has the columns that are neither, and
    why; ``leaks`` the warnings of inputs that give a target away. Of each row of all tables below each other, ``parts``
    has the split, ``numbers``, ``categories`` and ``texts`` the inputs, ``content`` a number for all its cells, and
    ``hashes`` one for its key, or its content where there is none.
    ``places[task]`` says which rows are a task's, and ``values[task]`` has their labels. ``counts`` says in words how
    many labels each split has.
    """

    def __init__(
        self,
        folder: Path,
        files: Mapping[str, str],
        target: str | Mapping[str, str],
        inputs: Sequence[str] | None,
        exclude: Sequence[str],
        kinds: Mapping[str, str] | None,
        split: str | None,
        key: str | None,
        validation: float,
        test: float,
        missing: Sequence[Any] | None,
        metadata: Mapping[str, Any] | None,
        reads_text: bool,
    ) -> None:
        paths = {task: folder / name for task, name in files.items()}
        before = stamps([*paths.values()])
        tables = _placed({path: read_rows(path, missing or ()) for path in dict.fromkeys(paths.values())})
        check_unchanged(before)
        self._tables = {task: tables[path] for task, path in paths.items()}
        self._every = [*tables.values()]
        self.files = Files({path: len(own.rows) for path, own in tables.items()})
        self.places = {task: own.place for task, own in self._tables.items()}
        wanted, kinds = self._wanted(target), dict(kinds or {})
        self._split(split, key, check_shares(validation, test))
        self._read_targets(wanted, kinds, missing, metadata)
        self.left_out: dict[str, str] = {}
        self.leaks: list[str] = []
        if metadata:
            self.rows = Rows(metadata["inputs"])
            for own in self._every:
                self.rows.check(own.rows.columns, own.file)
        else:
            of_inputs = {name: kind for name, kind in kinds.items() if name not in wanted.values()}
            self._learn(wanted, inputs, exclude, of_inputs, {split, key} - {None}, reads_text)
        table = self._stacked(self.rows.columns)
        self.numbers, self.categories = self.rows.encode(table, self.files)
        self.texts = self.rows.find_texts(table)
        del self._tables, self._every  # only while they are read

    def _wanted(self, target: str | Mapping[str, str]) -> dict[str, str]:
        """The column that each task predicts; ValueError for a task without one, and for one that is not there."""
        named = dict.fromkeys(self._tables, target) if isinstance(target, str) else dict(target)
        for task in named:
            if task not in self._tables:
                raise ValueError(f"target.{task} names no table; {suggestion(str(task), self._tables)}.")
        for task, own in self._tables.items():
            if task not in named:
                raise ValueError(f"target={named} has no column for {task}, the table {own.file}.")
            key = "target" if isinstance(target, str) else f"target.{task}"
            check_column(own.rows.columns, named[task], key, own.file)
        return {task: named[task] for task in self._tables}

    def _split(self, split: str | None, key: str | None, shares: Mapping[str, float]) -> None:
        """The split of every row, by its own table alone: another table moves no row."""
        parts, content, hashes = [], [], []
        for rows, file, _ in self._every:
            content.append(hash_rows(rows))
            own = None if key is None else rows[check_column(rows.columns, key, "key", file)]
            hashes.append(content[-1] if own is None else hash_column(own))
            if split is None:
                parts.append(split_by_hash(hashes[-1], shares, file))
            else:
                parts.append(splits_of(rows[check_column(rows.columns, split, "split", file)], file))
            check_all_splits(parts[-1], file)
        self.parts, self.content, self.hashes = map(np.concatenate, (parts, content, hashes))

    def _read_targets(
        self,
        wanted: Mapping[str, str],
        kinds: Mapping[str, str],
        missing: Sequence[Any] | None,
        metadata: Mapping[str, Any] | None,
    ) -> None:
        """The target of every task, in the rows of its own table; one column is of one kind in all of them."""
        own = {task: kinds[column] for task, column in wanted.items() if column in kinds}
        known = known_columns(metadata, wanted, own) if metadata else {}
        inferred = {} if metadata else {c: kinds.get(c) or self._infer(c, wanted) for c in {*wanted.values()}}
        self.columns: dict[str, Column] = {}
        self.values: dict[str, NDArray[Any]] = {}
        self.counts: dict[str, str] = {}
        for task, (rows, file, place) in self._tables.items():
            column, parts = wanted[task], self.parts[place]
            found = encode_targets(
                rows, {task: column}, {task: inferred.get(column, "")}, parts == "train", known, file
            )
            self.columns |= found[0]
            self.values |= found[1]
            self.counts[task] = count_labels(rows, task, self.columns[task], parts, missing, file)
            for part in SPLITS:
                if not rows.loc[parts == part, column].notna().any():
                    raise ValueError(f"{file}: no row of the split {part} has a label in {column}.")

    def _infer(self, column: str, wanted: Mapping[str, str]) -> str:
        """The kind of a target, as all tables tell it that have it as theirs."""
        own = {str(t.file): t for task, t in self._tables.items() if wanted[task] == column}
        rows = self._stacked([column], list(own.values()))
        return infer(rows, (column,), Files({path: n for t in own.values() for path, n in t.file.sizes.items()}))

    def _learn(
        self,
        wanted: Mapping[str, str],
        inputs: Sequence[str] | None,
        exclude: Sequence[str],
        kinds: Mapping[str, str],
        apart: set[Any],
        reads_text: bool,
    ) -> None:
        """The inputs, of the training rows of all tables, and which of them give a target away."""
        used = {*wanted.values()}
        every = list(dict.fromkeys(column for own in self._every for column in own.rows.columns))
        for name, named in (("inputs", inputs or ()), ("exclude", exclude)):  # what is excluded may be in one table
            for column in named:
                if check_column(every, column, name, self.files) in used:
                    raise ValueError(f"{name}={column} is the target of a task, and so no input of any.")
        columns = [column for column in every if column not in {*used, *apart, *exclude}] if inputs is None else inputs
        found, self.left_out = learn_inputs(
            self._stacked(columns), inputs, (), kinds, used, apart, self.parts == "train", self.files, reads_text
        )
        self.rows = Rows(found)
        for task, (rows, file, place) in self._tables.items():
            one = {task: self.columns[task]}, {task: self.values[task]}, self.parts[place] == "train"
            self.leaks += find_leaks(rows, found, *one, file)
            for column in used - {wanted[task], *exclude}:
                if column in rows and inputs is None:
                    self.left_out[column] = "it is the target of another task"

    def _stacked(self, columns: Sequence[str], tables: Sequence[_Table] | None = None) -> pd.DataFrame:
        """Some columns of all tables below each other; ValueError, with file and column, where they differ."""
        first, *others = tables or self._every
        for own in others:
            check_alike(first.file, first.rows, own.file, own.rows, columns)
        return pd.concat([own.rows[list(columns)] for own in (first, *others)], ignore_index=True)

    @property
    def metadata(self) -> dict[str, Any]:
        """What the numbers mean."""
        return {
            "targets": {task: asdict(column) for task, column in self.columns.items()},
            "inputs": [asdict(column) for column in self.rows.inputs],
        }


def _placed(tables: Mapping[Path, pd.DataFrame]) -> dict[Path, _Table]:
    ends = np.cumsum([len(rows) for rows in tables.values()]).tolist()
    return {
        path: _Table(rows, Files({path: len(rows)}), slice(end - len(rows), end))
        for (path, rows), end in zip(tables.items(), ends, strict=True)
    }
