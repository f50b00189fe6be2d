"""The rows of a table of labels, without torch: the image, the split and the targets of each."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mtl.data import SPLITS
from mtl.data.columns import Column, as_list, encode, encode_as, infer, known_columns, target_name
from mtl.data.image_paths import find_image_column, find_images
from mtl.data.image_sizes import SIZED, median_size
from mtl.data.names import share_out
from mtl.data.table_checks import check_labelled, inspect
from mtl.data.table_text import check_column
from mtl.data.tables import first_row, read_table, row_number

log = logging.getLogger(__name__)


class LabelTable:
    """What mtl.data.image_table.ImageTable knows of its table; the arguments and the errors are described there.

    ``image`` is the column with the images' paths, and ``columns`` are the targets. Of each row, ``paths`` has the
    image, ``parts`` the split, and ``values[target]`` the label, as a class, binary labels or standardised numbers.
    ``counts`` says in words how many labels each split has, ``file_size`` the median height and width of the images.
    """

    def __init__(
        self,
        folder: Path,
        labels: str,
        image: str | None = None,
        targets: Mapping[str, str | Sequence[str]] | None = None,
        kinds: Mapping[str, str] | None = None,
        split: str | None = None,
        validation: float = 0.15,
        test: float = 0.15,
        missing: Sequence[Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self._file = folder, folder / labels
        wanted, known = targets, {}
        if metadata is not None:
            image, known = metadata["image"], known_columns(metadata, targets, kinds)
            wanted = {name: column.columns for name, column in known.items()}
        table, found = read_table(self._file, image, missing or (), self.folder)
        self.image = check_column(table.columns, found, "image", self._file)
        table[self.image] = self._find_images(table)
        self.paths = table[self.image].to_numpy()
        self.file_size = median_size([self.folder / name for name in self.paths[:SIZED]])
        self.parts = self._assign_splits(table, split, validation, test)
        wanted = wanted or self._all_columns(table, split)
        self.columns, self.values = self._encode_targets(table, wanted, kinds or {}, self.parts == "train", known)
        self.counts = {name: self._inspect(table, name, missing) for name in self.columns}
        for part in SPLITS:
            if not (self.parts == part).any():
                raise ValueError(f"{self._file} has no row for the split {part}.")

    def _encode_targets(
        self,
        table: pd.DataFrame,
        wanted: Mapping[str, str | Sequence[str]],
        kinds: Mapping[str, str],
        train: NDArray[np.bool_],
        known: Mapping[str, Column],
    ) -> tuple[dict[str, Column], dict[str, NDArray[Any]]]:
        """The targets, and their values in every row; ``known`` are those of another run."""
        if unknown := sorted(set(kinds) - set(wanted)):
            raise ValueError(f"kinds.{unknown[0]} names no target; the targets are {', '.join(wanted)}.")
        found: dict[str, Column] = {}
        values: dict[str, NDArray[Any]] = {}
        for name, own in wanted.items():
            columns = tuple(check_column(table.columns, c, f"targets.{name}", self._file) for c in as_list(own))
            if name in known:
                found[name], values[name] = known[name], encode_as(known[name], table, self._file)
                continue
            kind = kinds.get(name) or infer(table, columns, self._file)
            check_labelled(str(self._file), name, table[list(columns)], train)
            found[name], values[name] = encode(table, name, kind, columns, train, self._file)
        return found, values

    def _inspect(self, table: pd.DataFrame, name: str, missing: Sequence[Any] | None) -> str:
        """How many labels of what each split has, logged with warnings of likely mistakes."""
        own = self.columns[name]
        counts = inspect(f"{self._file}: {name}", own.kind, table[list(own.columns)], self.parts, missing)
        log.info("%s: %s", name, counts)
        return counts

    def _all_columns(self, table: pd.DataFrame, split: str | None) -> dict[str, str]:
        columns = [column for column in table.columns if column not in (self.image, split)]
        names = [target_name(column) for column in columns]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{self._file}: two columns have the target name {name}; name them in data.targets.")
        return dict(zip(names, columns, strict=True))

    def _find_images(self, table: pd.DataFrame) -> list[str]:
        """The path of every row's image; ValueError with the row where there is none."""
        names = table[self.image]
        empty = names.isna() | (names == "")
        if empty.any():
            raise ValueError(f"{self._file}, row {row_number(first_row(empty))}: {self.image} is empty.")
        names = names.astype(str)
        found = find_images(names.tolist(), self.folder)
        missing = np.array([path is None for path in found], bool)
        if missing.any():
            row = first_row(missing)
            other = find_image_column(table, self.folder)
            hint = f"; the column {other} has files: data.image={other} (--image of the command)"
            raise ValueError(
                f"{self._file}, row {row_number(row)}: {self.folder / names.iloc[row]} does not exist "
                f"({missing.sum()} of {len(missing)} images are missing{hint if other != self.image else ''})."
            )
        paths = [path for path in found if path is not None]
        if spelt := [pair for pair in zip(names, paths, strict=True) if pair[0] != pair[1]]:
            log.info("%s spells the images' paths otherwise: %r is read as %r", self._file, *spelt[0])
        return paths

    def _assign_splits(self, table: pd.DataFrame, split: str | None, validation: float, test: float) -> NDArray[Any]:
        """The split of every row."""
        if split is not None:
            named = table[check_column(table.columns, split, "split", self._file)]
            if not named.isin(SPLITS).all():
                row = first_row(~named.isin(SPLITS))
                raise ValueError(
                    f"{self._file}, row {row_number(row)}: {split} is {named.iloc[row]}; it must be "
                    f"{', '.join(SPLITS)}."
                )
            return named.to_numpy(dtype=object)
        if min(validation, test) <= 0 or validation + test >= 1:
            raise ValueError(f"validation={validation} and test={test} must be above 0 and together below 1.")
        # By name and not by row: an image that has several rows is in one split.
        part_of = share_out(table[self.image].unique().tolist(), {"test": test, "val": validation}, self._file)
        return table[self.image].map(part_of).to_numpy(dtype=object)
