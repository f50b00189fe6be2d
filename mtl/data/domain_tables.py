"""Several tables, such as those of cities or years, each of which is a task with rows of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtl.data import fixtures
from mtl.data.folder import find_root
from mtl.data.metadata import digest
from mtl.data.mixture import Mixture
from mtl.data.own_inputs import OwnInputs
from mtl.data.stacked_tables import StackedTables
from mtl.data.table import NAMED, Table, read_texts
from mtl.errors import require, require_positive

SOURCE = (
    "give data.files={task: table, …}, and data.root=… where they are not in the current folder; "
    "python -m mtl.data.domain_tables --make-fixture DIR writes tiny ones."
)


class DomainTables(Table):
    """Several tables with the same inputs. Each is a task: to predict its ``target``.

    ``files`` maps a task to its table, CSV or Parquet, below ``root``. ``target`` is the column that all of them
    predict, or maps each task to its own. A column is of one kind (``class``, ``number``, ``count``) in all tables;
    classes, and mean and deviation of a number, are those of each task. A row without a label is left out.

    The inputs are all other columns, or ``inputs``; those that all tables have, of one kind, or ``exclude`` has them:
    the trunk reads them all, so that categories, means and deviations are those of the training rows of all tables
    together. A column that is the target of any task is no input. ``kinds``, by the column's name, ``split``, ``key``,
    ``validation``, ``test``, ``missing``, ``tokenizer``, ``length`` and ``metadata`` are as mtl.data.table.Table has
    them, as are the warnings of columns that are left out or give a target away; each table is split by itself.

    Inputs: a dict task -> what a table has, of the rows of the task alone. Targets: a dict task -> labels. A training
    batch has ``batch_size`` rows of every table, and an epoch is one pass over the largest; ``sampling`` and
    ``temperature`` draw smaller ones less often: see mtl.data.mixture, also for what that means for the losses.

    Raises ValueError as a table does; and, with the file and the column, where an input is not in all tables, or of
    another kind in one of them.
    """

    inputs_per_task = True

    def __init__(
        self,
        files: Mapping[str, str],
        target: str | Mapping[str, str],
        root: str = ".",
        inputs: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        kinds: Mapping[str, str] | None = None,
        split: str | None = None,
        key: str | None = None,
        validation: float = 0.15,
        test: float = 0.15,
        batch_size: int = 64,
        sampling: str = "equal",
        temperature: float | None = None,
        missing: Sequence[Any] | None = None,
        tokenizer: str | None = None,
        length: int = 128,
        reads_text: bool = False,
        seed: int = 0,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        require_positive(batch_size=batch_size)
        require("files", files, "a table by its task's name, as in {paris: a.csv, rome: b.csv}", _names_files(files))
        folder = find_root(root, dict.fromkeys(files.values(), "a table"), SOURCE, suggest=True)
        tables = StackedTables(
            folder, files, target, inputs, exclude, kinds, split, key, validation, test, missing, metadata, reads_text
        )
        read_texts(tables, reads_text, tokenizer, length, metadata)
        sizes = {task: len(rows) for task, rows in _rows_of(tables, "train").items()}
        self._mixture = Mixture(sizes, sampling, temperature, seed)
        self._mixture.log_batch(batch_size)
        self._use(tables, batch_size)

    def _part(self, table: Any, part: str) -> OwnRows:
        return OwnRows(table, part, self._mixture if part == "train" else None)


class OwnRows(OwnInputs):
    """The rows of one split, of every task those of its table that have a label."""

    def __init__(self, tables: StackedTables, part: str, mixture: Mixture | None) -> None:
        self._tables, self._mixture = tables, mixture
        self._items = self._rows = _rows_of(tables, part)
        rows = np.concatenate([*self._rows.values()])
        self.digest = digest(tables.content[rows])
        if len(rows) <= NAMED:
            self.names = [f"{task}/{n:x}" for task, own in self._rows.items() for n in tables.hashes[own].tolist()]

    def batch(self, indices: Sequence[int], epoch: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The rows of ``indices`` in this epoch, for each task that has one."""
        own, inputs, targets = self._tables, {}, {}
        for task, items in self._rows.items():
            rows = items[[self._position(task, index, epoch) for index in self.samples(task, indices)]]
            if len(rows):
                inputs[task] = own.rows.tensors(own.numbers[rows], own.categories[rows], own.texts[rows])
                targets[task] = torch.from_numpy(own.values[task][rows - own.places[task].start])
        return inputs, targets


def _names_files(files: Any) -> bool:
    return isinstance(files, Mapping) and bool(files) and all(isinstance(own, str) for own in files.values())


def _rows_of(tables: StackedTables, part: str) -> dict[str, Any]:
    """The rows of a split that have a label, by task, among those of all tables."""
    found = {}
    for task, place in tables.places.items():
        labels = tables.values[task]
        known = labels >= 0 if tables.columns[task].kind == "class" else ~np.isnan(labels).any(1)
        found[task] = place.start + np.flatnonzero(known & (tables.parts[place] == part))
    return found


# ------------------------------------------------------------------------------------------------------- a fixture

NAMED_BY = "'data.files={bonn: bonn.csv, ulm: ulm.csv}' data.target=price"  # what the command on the fixture names


def make_fixture(root: Path, sizes: Mapping[str, int] | None = None) -> None:
    """Write a table of flats for each city, of different sizes, and what they cost; some cells are empty."""
    rng = np.random.default_rng(0)
    root.mkdir(parents=True, exist_ok=True)
    for city, rows in (sizes or {"bonn": 160, "ulm": 60}).items():
        lines = ["area,floor,kind,balcony,built,price"]
        for i in range(rows):
            area, floor = rng.normal(70, 20), int(rng.integers(0, 6))
            kind, balcony = ("loft", "studio", "flat")[int(rng.integers(3))], rng.random() < 0.5
            price = (12 if city == "bonn" else 15) * area + 40 * floor + 90 * balcony + rng.normal(0, 40)
            cells = [f"{area:.1f}", str(floor), kind, str(balcony), f"{rng.integers(1950, 2020)}-03-01", f"{price:.0f}"]
            if i % 11 == 5:
                cells[i // 11 % 6] = ""
            lines.append(",".join(cells))
        (root / f"{city}.csv").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    fixtures.main(make_fixture, NAMED_BY)
