"""A table with a row a sample, in CSV or Parquet: numbers, categories and dates as inputs, other columns as targets.

torch is imported where a data set is made: the command that describes a table does without.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mtl.data import SPLITS, fixtures
from mtl.data.columns import KINDS
from mtl.data.folder import find_root
from mtl.data.input_columns import INPUT_KINDS
from mtl.data.input_table import InputTable
from mtl.data.table_command import add_arguments, count_rows, kinds_of, show_left_out, show_targets, show_written
from mtl.data.table_configuration import write_files
from mtl.data.table_rows import one, raw_texts
from mtl.data.table_targets import class_names_of, scales_of
from mtl.data.target_names import target_name
from mtl.data.tokenizer import Tokenizer, tokenizer_content
from mtl.errors import require_positive

if TYPE_CHECKING:
    from torch import Tensor
    from torchmetrics import Metric

    from mtl.data.stacked_tables import StackedTables

log = logging.getLogger(__name__)

SOURCE = "give data.root=… the folder, data.file=… the table in it, and data.targets=[…] the columns to predict."
NAMED = 1_000_000  # rows whose names a checkpoint holds: 8 bytes each


class Table:
    """The rows of a table: some columns are targets, the others inputs.

    ``file`` is the table's path below ``root``, or a dict of the files of ``train``, ``val`` and ``test``, of which all
    but ``train`` may be left out. ``targets`` are columns, or map a name to one column or several; their kinds are
    ``class``, ``labels`` and ``number``, as mtl.data.image_table.ImageTable describes them, and ``count``: whole
    numbers from 0 on, as they are, for a loss of counts. ``inputs`` are columns, by default all others but those in
    ``exclude``. The kind of an input is inferred, too, unless ``kinds`` has its name:

    - ``number``: standardised by the mean and deviation of the training rows. Where a training row has none, a further
      number is 1 in the rows without a value, which is then 0.
    - ``category``: text, booleans, and whole numbers with at most 20 distinct values. A value that no training row has
      is the same as none.
    - ``date``: year, month, weekday, day of the year and hour, as numbers; those that do not vary are left out.
    - ``text``: free text, where the backbone reads it; one column, or two as a pair. ``tokenizer`` is a tokenizer.json
      or a folder with one; by default a vocabulary is learnt from the training rows. Texts of more than ``length``
      tokens are cut.

    A column of names or of one value is no input, nor is free text that the backbone does not read; a warning says so.
    A warning also names an input that gives a target away, see mtl.data.table_leaks.

    ``split`` is the column with ``train``, ``val`` or ``test``. Without it a hash decides, of the column ``key``, such
    as a customer's number, or without one of the whole row: rows with the same key are in one split, whatever the seed
    and the other rows. About the shares ``validation`` and ``test`` are held out. ``missing`` are further values that
    stand for none, in inputs and targets. ``cache`` is a folder for the numbers that the table becomes: they are read
    from there and not from memory, also by the next run, and a text is read a block at a time. ``metadata``, another
    run's, reads the table with the inputs, kinds, classes and statistics that its model learnt.

    Inputs: ``numbers`` ``[B, p]`` and ``categories`` ``[B, q]``, int64; with texts also ``text``, of ``tokens``, int64,
    and ``mask`` ``[B, length]``, see mtl.data.tokenizer. ``preprocess`` makes them of a row or of many.
    Targets: ``class`` ``[B]``, -100 if missing; the others ``[B, columns]``, NaN if missing.

    Raises ValueError for a missing or invalid table, column or cell, with its row, of which the header is 1.
    """

    def __init__(
        self,
        root: str,
        targets: str | Sequence[str] | Mapping[str, str | Sequence[str]] | None = None,
        file: str | Mapping[str, str] = "table.csv",
        inputs: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        kinds: Mapping[str, str] | None = None,
        split: str | None = None,
        key: str | None = None,
        validation: float = 0.15,
        test: float = 0.15,
        batch_size: int = 256,
        missing: Sequence[Any] | None = None,
        cache: str | None = None,
        tokenizer: str | None = None,
        length: int = 128,
        reads_text: bool = False,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        require_positive(batch_size=batch_size)
        if reads_text and cache is not None:
            raise ValueError(f"cache={cache} is for numbers, and the backbone reads text: leave it out.")
        names = [file] if isinstance(file, str) else list(file.values())
        folder = find_root(root, dict.fromkeys(names, "the table"), SOURCE, suggest=True)
        table = InputTable(
            folder,
            file,
            targets or (),
            inputs,
            exclude,
            kinds,
            split,
            key,
            validation,
            test,
            missing,
            metadata,
            cache,
            reads_text,
        )
        read_texts(table, reads_text, tokenizer, length, metadata)
        self._use(table, batch_size)

    def _use(self, table: InputTable | StackedTables, batch_size: int) -> None:
        """Become the data set of a table that is read."""
        for column, reason in table.left_out.items():
            log.warning("%s is left out of the inputs: %s", column, reason)
        for leak in table.leaks:
            log.warning("%s", leak)
        self.columns, self.counts = table.columns, table.counts
        self.targets = tuple(self.columns)
        self.class_names, self.scales = class_names_of(self.columns), scales_of(self.columns)
        self.preprocess, self.metadata = table.rows, dict(table.metadata)
        if table.rows.tokenizer is not None:
            self.metadata["tokenizer"] = table.rows.tokenizer.content
        self.batch_size, self.input_info = batch_size, table.rows.input_info
        self.train, self.val, self.test = (self._part(table, part) for part in SPLITS)

    def _part(self, table: Any, part: str) -> Any:
        return Part(table, part)

    def metrics(self, target: str) -> dict[str, Metric]:
        """Of a class ``accuracy``, ``log_loss``, and of two classes ``auc`` and ``average_precision``.

        Of labels ``auc`` and ``average_precision``, the means over the labels. Of numbers and counts ``abs_err``,
        ``rmse`` and ``r2``, in the table's unit; several have one metric per column, as ``r2_<column>``. Missing labels
        are ignored.
        """
        from mtl import metrics

        column = self.columns[target]
        if column.kind == "class":
            return metrics.probabilities(len(column.classes))
        if column.kind == "labels":
            return metrics.ranking(column.width)
        endings = [""] if column.width == 1 else [f"_{target_name(name)}" for name in column.columns]
        if column.kind == "count":
            return metrics.counts(endings)
        return metrics.standardised(column.std, endings) | metrics.determination(endings)


def read_texts(
    table: InputTable | StackedTables, reads: bool, path: str | None, length: int, metadata: Mapping[str, Any] | None
) -> None:
    """Give the table's rows the tokenizer of their texts; ValueError where they or a backbone for them lack."""
    named = table.rows.texts
    if named and not reads:
        raise ValueError(f"kinds.{named[0]}=text needs a backbone that reads text: table_text or text.")
    if reads and not named:
        raise ValueError(
            f"the backbone reads text, and no input of {table.files} is free text; name it by +data.kinds."
        )
    if not named:
        return
    texts = table.texts[table.parts == "train"]
    content = metadata["tokenizer"] if metadata else tokenizer_content(path, texts.ravel().tolist())
    table.rows.tokenizer = Tokenizer(content, length)
    if not metadata:
        log.info("free text: %s", ", ".join(named))
        table.rows.tokenizer.say_cut(raw_texts(texts))


class Part:
    """The rows of one split."""

    def __init__(self, table: InputTable, part: str) -> None:
        from mtl.data.metadata import digest

        self._table, self._rows = table, np.flatnonzero(table.parts == part)
        self.digest = digest(table.content[self._rows])
        if len(self._rows) <= NAMED:
            self.names = [format(key, "x") for key in table.hashes[self._rows].tolist()]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
        inputs, targets = self.batch([index], 0)
        return one(inputs), one(targets)

    def batch(self, indices: Sequence[int], epoch: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The rows of ``indices``, the same in every epoch."""
        import torch

        own, rows = self._table, self._rows[indices]
        inputs = own.rows.tensors(own.numbers[rows], own.categories[rows], own.texts[rows])
        return inputs, {name: torch.from_numpy(own[rows]) for name, own in self._table.values.items()}

    def path(self, index: int) -> str:
        """The file and the row of a sample."""
        return self._table.files.row(int(self._rows[index]))


# ---------------------------------------------------------------------------------------- the command


def make_fixture(root: Path, rows: int = 120) -> None:
    """Write a table of visits to a shop: what was bought, for how much, and whether the customer came again."""
    rng = np.random.default_rng(0)
    lines = ["customer,day,city,age,member,basket,amount,again"]
    for i in range(rows):
        day, city, age = rng.integers(365), ("Bonn", "Köln", "Ulm")[rng.integers(3)], rng.integers(18, 80)
        member = rng.random() < 0.4
        date = np.datetime64("2024-01-01") + day
        basket = ("bread", "fruit", "wine")[int(rng.integers(3) if rng.random() < 0.3 else (age > 35) + (age > 55))]
        amount = 5 + 0.3 * age + 12 * member + rng.normal(0, 2)
        again = rng.random() < 1 / (1 + np.exp(3 - 4 * member - age / 40))
        cells = [f"c{i}", str(date), city, str(age), str(member), basket, f"{amount:.2f}", str(int(again))]
        if i % 9 == 4:
            cells[1 + i // 9 % 7] = ""
        lines.append(",".join(cells))
    root.mkdir(parents=True, exist_ok=True)
    (root / "table.csv").write_text("\n".join(lines) + "\n")


def main() -> None:
    """Print what a table's columns are, and write a configuration that trains on them."""
    parser = argparse.ArgumentParser("python -m mtl.data.table", description=main.__doc__)
    parser.add_argument("file", nargs="?", type=Path, help="the table: .csv, .tsv, .txt or .parquet")
    parser.add_argument("--targets", nargs="+", default=[], metavar="COLUMN", help="the columns to predict")
    parser.add_argument("--exclude", nargs="+", default=[], metavar="COLUMN", help="columns that are to be no inputs")
    parser.add_argument("--text", action="store_true", help="columns of free text are inputs, too")
    parser.add_argument("--key", help="the column whose hash decides the split; default: the whole row's")
    add_arguments(parser, (*KINDS, *(kind for kind in INPUT_KINDS if kind not in KINDS)))
    given = parser.parse_args()
    if given.make_fixture is not None:
        fixtures.write(make_fixture, given.make_fixture, parser, "data.targets=[basket,amount,again]")
        return
    if given.file is None:
        parser.error("give the table.")
    arguments: dict[str, Any] = {"root": str(given.file.absolute().parent), "file": given.file.name}
    arguments |= {"split": given.split, "key": given.key}
    if given.missing is not None:
        arguments["missing"] = given.missing
    own = {key: value for key, value in arguments.items() if key != "root"}
    try:
        data = InputTable(
            given.file.absolute().parent,
            targets=given.targets,
            exclude=given.exclude,
            kinds=kinds_of(given.kinds),
            reads_text=given.text,
            **own,
        )
        print(f"{count_rows(data.parts)}; targets:")
        show_targets(data.columns, data.counts)
        print("inputs:")
        for column in data.rows.inputs:
            print(f"  {column.name}: {column}")
        show_left_out(data.left_out)
        print(*(f"WARNING: {leak}" for leak in data.leaks), sep="\n", end="\n" if data.leaks else "")
        if given.write is not None:
            files = write_files(_data(data, arguments), data.columns, given.write, given.name)
            show_written(files, given.write, given.name)
    except ValueError as error:
        sys.exit(f"{parser.prog}: {error}")


def _data(data: InputTable, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of the data, with all that was found, so that another table cannot change it."""
    inputs = {column.name: column.kind for column in data.rows.inputs}
    texts = len(data.rows.texts)
    backbone = "tabular" if not texts else "text" if texts == len(inputs) else "table_text"
    own: dict[str, Any] = {"defaults": [{"override /backbone@_global_.backbone": backbone}]}
    own |= {"_target_": "mtl.data.table.Table", **arguments}
    own["targets"] = {target: column.columns[0] for target, column in data.columns.items()}
    own |= {"inputs": list(inputs), "exclude": []}
    own["kinds"] = inputs | {target: column.kind for target, column in data.columns.items()}
    own |= {"validation": 0.15, "test": 0.15, "batch_size": 32 if texts else 256}
    return own | ({"tokenizer": "${oc.select:backbone.path,null}", "length": 128} if texts else {})


if __name__ == "__main__":
    main()
