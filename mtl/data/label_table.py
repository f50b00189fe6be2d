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
from mtl.data.columns import known_columns
from mtl.data.image_paths import find_image_column, find_images
from mtl.data.image_sizes import SIZED, median_size
from mtl.data.names import share_out
from mtl.data.table_splits import check_shares, splits_of
from mtl.data.table_targets import count_labels, encode_targets, targets_of
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
        wanted = wanted or targets_of((c for c in table.columns if c not in (self.image, split)), self._file)
        if unknown := sorted(set(kinds or {}) - set(wanted)):
            raise ValueError(f"kinds.{unknown[0]} names no target; the targets are {', '.join(wanted)}.")
        train = self.parts == "train"
        self.columns, self.values = encode_targets(table, wanted, kinds or {}, train, known, self._file)
        self.counts = {
            name: count_labels(table, name, own, self.parts, missing, self._file) for name, own in self.columns.items()
        }
        for part in SPLITS:
            if not (self.parts == part).any():
                raise ValueError(f"{self._file} has no row for the split {part}.")

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
            return splits_of(table[check_column(table.columns, split, "split", self._file)], self._file)
        shares = check_shares(validation, test)
        # By name and not by row: an image that has several rows is in one split.
        part_of = share_out(table[self.image].unique().tolist(), shares, self._file)
        return table[self.image].map(part_of).to_numpy(dtype=object)
