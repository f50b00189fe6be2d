"""The rows of a table as inputs and targets, without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mtl.data import SPLITS
from mtl.data.columnar import Columnar, open_columns, remove_texts
from mtl.data.columns import known_columns
from mtl.data.table_alike import check_alike
from mtl.data.table_cache import alias, check_unchanged, emptied, fingerprint, load, locked, new_array, save, stamps
from mtl.data.table_checks import check_all_splits
from mtl.data.table_inputs import learn_inputs
from mtl.data.table_leaks import find_leaks
from mtl.data.table_rows import Rows
from mtl.data.table_splits import check_shares, hash_column, hash_rows, split_by_hash, splits_of
from mtl.data.table_targets import count_labels, encode_targets, targets_of
from mtl.data.table_text import check_column
from mtl.data.tables import Files, read_rows
from mtl.data.target_names import as_list

Targets = str | Sequence[str] | Mapping[str, str | Sequence[str]]


class InputTable:
    """What mtl.data.table.Table knows of its table; the arguments and the errors are described there.

    ``columns`` are the targets and ``rows`` makes the inputs; ``left_out`` has the columns that are neither, and why;
    ``leaks`` the warnings of inputs that give a target away. Of each row, ``parts`` has the split, ``values[target]``
    the label, ``numbers``, ``categories`` and ``texts`` the inputs, ``content`` a number for all its cells, and
    ``hashes`` one for its key, or its content where there is none. ``counts`` says in words how many labels each split
    has.

    ``frame`` has the rows already, made of the file. Its inputs are known not to give a target away: no leak is sought.
    """

    def __init__(
        self,
        folder: Path,
        file: str | Mapping[str, str],
        targets: Targets,
        inputs: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        kinds: Mapping[str, str] | None = None,
        split: str | None = None,
        key: str | None = None,
        validation: float = 0.15,
        test: float = 0.15,
        missing: Sequence[Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        cache: str | None = None,
        reads_text: bool = False,
        frame: pd.DataFrame | None = None,
    ) -> None:
        arguments = (file, targets, inputs, exclude, kinds, split, key, validation, test, missing, metadata)
        self._file, self._kinds, self._reads_text, self._frame = file, dict(kinds or {}), reads_text, frame
        self._table: Any = None  # only while it is read
        paths = paths_of(folder, file)
        before = stamps(paths)
        if cache is None:
            self._read(paths, None, *arguments)
            check_unchanged(before)
            self._table = None
            return
        own = Path(cache).expanduser() / fingerprint(before, arguments)
        with locked(own):
            if (found := load(own)) is None:
                self._read(paths, emptied(own), *arguments)
                check_unchanged(before)
                save(own, *self._state())
                # A run that goes on from this one, or evaluates it, reads the table with what is known now.
                alias(own, fingerprint(before, (*arguments[:-1], self.metadata)))
                found = load(own)
                remove_texts(own)
        self._table = None
        self._restore(*found)  # type: ignore[misc]

    def _read(
        self,
        paths: Sequence[Path],
        cache: Path | None,
        file: str | Mapping[str, str],
        targets: Targets,
        inputs: Sequence[str] | None,
        exclude: Sequence[str],
        kinds: Mapping[str, str] | None,
        split: str | None,
        key: str | None,
        validation: float,
        test: float,
        missing: Sequence[Any] | None,
        metadata: Mapping[str, Any] | None,
    ) -> None:
        """Everything from the files; the inputs in the folder ``cache``, if there is one."""
        self._table, self.files = self._open(paths, missing or (), cache)
        table = self._table
        wanted = self._wanted(targets, metadata)
        self.content = hash_rows(table)
        self.hashes = self.content if key is None else hash_column(table[self._check(key, "key")])
        self.parts = self._assign_splits(split, validation, test)
        train = self.parts == "train"
        known = known_columns(metadata, wanted, self._target_kinds(wanted)) if metadata else {}
        self.columns, self.values = encode_targets(table, wanted, self._target_kinds(wanted), train, known, self.files)
        self.counts = {
            name: count_labels(table, name, own, self.parts, missing, self.files) for name, own in self.columns.items()
        }
        used = {column for own in self.columns.values() for column in own.columns}
        self.left_out: dict[str, str] = {}
        self.leaks: list[str] = []
        if metadata:
            self.rows = Rows(metadata["inputs"])
        else:
            own = {name: kind for name, kind in self._kinds.items() if name not in self.columns}
            apart = {split, key} - {None}
            found, self.left_out = learn_inputs(
                table, inputs, exclude, own, used, apart, train, self.files, self._reads_text
            )
            self.rows = Rows(found)
            if self._frame is None:
                self.leaks = find_leaks(table, self.rows.inputs, self.columns, self.values, train, self.files)
        self._encode(cache)
        self.texts = self.rows.find_texts(table)

    def _open(self, paths: Sequence[Path], missing: Sequence[Any], cache: Path | None) -> tuple[Any, Files]:
        """The rows, and the files that they are from."""
        if self._frame is not None:
            return self._frame, Files({Path(f"the rows made of {paths[0]}"): len(self._frame)})
        return open_files(paths, missing, cache)

    def _encode(self, cache: Path | None) -> None:
        """The inputs of all rows, a block of rows at a time."""
        info, count = self.rows.input_info, len(self._table)
        self.numbers = new_array(cache, "numbers", (count, info["numbers"]), np.float32)
        self.categories = new_array(cache, "categories", (count, len(info["categories"])), np.int32)
        self.rows.check(self._table.columns, self.files)
        in_blocks = isinstance(self._table, Columnar)
        for first, block in self._table.blocks(self.rows.columns) if in_blocks else [(0, self._table)]:
            rows = slice(first, first + len(block))
            self.numbers[rows], self.categories[rows] = self.rows.encode(block, Files(self.files.sizes, first))

    def _state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """What a cache holds."""
        plain = {"metadata": self.metadata, "counts": self.counts, "left_out": self.left_out, "leaks": self.leaks}
        plain["sizes"] = {str(file): size for file, size in self.files.sizes.items()}
        parts = np.select([self.parts == part for part in SPLITS], [*range(len(SPLITS))])
        arrays = {"numbers": self.numbers, "categories": self.categories, "parts": parts.astype(np.uint8)}
        arrays |= {"content": self.content, "hashes": self.hashes}
        return plain, arrays | {f"target {name}": own for name, own in self.values.items()}

    def _restore(self, plain: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        self.columns = known_columns(plain["metadata"], None, None)
        self.rows = Rows(plain["metadata"]["inputs"])
        self.counts, self.left_out, self.leaks = plain["counts"], plain["left_out"], plain["leaks"]
        self.files = Files({Path(file): size for file, size in plain["sizes"].items()})
        self.numbers, self.categories = arrays["numbers"], arrays["categories"]
        self.parts = np.array(SPLITS, object)[arrays["parts"]]
        self.content, self.hashes = arrays["content"], arrays["hashes"]
        self.values = {name: arrays[f"target {name}"] for name in self.columns}
        self.texts = np.empty((len(self.parts), 0), object)

    @property
    def metadata(self) -> dict[str, Any]:
        """What the numbers mean."""
        return {
            "targets": {name: asdict(column) for name, column in self.columns.items()},
            "inputs": [asdict(column) for column in self.rows.inputs],
        }

    def _check(self, column: str, key: str) -> str:
        return check_column(self._table.columns, column, key, self.files)

    def _wanted(self, targets: Targets, metadata: Mapping[str, Any] | None) -> Mapping[str, str | Sequence[str]]:
        """The targets' columns by name, as given or as another run had them."""
        if not targets and metadata:
            return {name: own["columns"] for name, own in metadata["targets"].items()}
        if not targets:
            raise ValueError(
                f"targets={targets} names no target; the columns of {self.files} are {', '.join(self._table.columns)}."
            )
        if isinstance(targets, Mapping):
            return targets
        return targets_of([self._check(column, "targets") for column in as_list(targets)], self.files)

    def _target_kinds(self, wanted: Mapping[str, Any]) -> dict[str, str]:
        return {name: kind for name, kind in self._kinds.items() if name in wanted}

    def _assign_splits(self, split: str | None, validation: float, test: float) -> NDArray[Any]:
        file = self._file
        if split is not None:
            if not isinstance(file, str):
                raise ValueError(f"split={split}: the files say already which rows are train, val and test.")
            parts = splits_of(self._table[self._check(split, "split")], self.files)
        else:
            named = ["train"] if isinstance(file, str) else list(file)
            parts = np.repeat(np.array(named, object), list(self.files.sizes.values()))
            if shares := {part: share for part, share in check_shares(validation, test).items() if part not in named}:
                rows = parts == "train"
                parts[rows] = split_by_hash(self.hashes[rows], shares, self.files)
        check_all_splits(parts, self.files)
        return parts


def paths_of(folder: Path, file: str | Mapping[str, str]) -> list[Path]:
    """The files, in the order of their splits' names in ``file``; ValueError for another name than a split's."""
    names = {"train": file} if isinstance(file, str) else dict(file)
    if unknown := sorted({*names} - {*SPLITS}):
        raise ValueError(f"file.{unknown[0]} is no split; a file is of {', '.join(SPLITS)}.")
    if "train" not in names:
        raise ValueError("file: there is none for train.")
    if len({*names.values()}) < len(names):
        raise ValueError(f"file={names}: two splits have one file.")
    return [folder / name for name in names.values()]


def open_files(paths: Sequence[Path], missing: Sequence[Any], folder: Path | None) -> tuple[Any, Files]:
    """The rows in the files: a column at a time of Parquet, and of texts by way of ``folder`` if there is one."""
    columns = open_columns(paths, missing, folder)
    return read_files(paths, missing) if columns is None else (columns, Files(columns.sizes))


def read_files(paths: Sequence[Path], missing: Sequence[Any]) -> tuple[pd.DataFrame, Files]:
    """The table in one file, or those of several below each other; ValueError where a column is of two kinds."""
    read = {path: read_rows(path, missing) for path in paths}
    files = Files({path: len(own) for path, own in read.items()})
    (first, table), *others = read.items()
    for path, own in others:
        check_alike(first, table, path, own, table.columns.union(own.columns, sort=False))
    return pd.concat(read.values(), ignore_index=True) if others else table, files
