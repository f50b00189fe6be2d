"""Where predictions go: a table or a folder, written whole or not at all, and a half-done job that can go on."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mtl.runs.files import finite_or_null

FORMATS = (".csv", ".parquet", ".jsonl")
TABLE = "predictions.csv"  # in a folder of maps


def check_out(out: Path, overwrite: bool) -> None:
    """ValueError for an output that cannot be written: its ending, a library, what is there already."""
    if out.suffix and out.suffix not in FORMATS:
        raise ValueError(f"--out {out} must end in {', '.join(FORMATS)}, or be a folder for maps.")
    if out.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise ValueError(
            f"--out {out}: Parquet needs pyarrow, which the extra mtl-torch[parquet] brings; .csv needs nothing."
        )
    if not out.absolute().parent.is_dir():
        raise ValueError(f"--out {out}: there is no folder {out.parent}.")
    if out.exists() and not overwrite:
        raise ValueError(f"--out {out} is there already; --overwrite replaces it.")
    if out.exists() and out.is_dir() != (not out.suffix):
        raise ValueError(
            f"--out {out} is a {'folder' if out.is_dir() else 'file'}, which --overwrite does not replace."
        )
    if out.is_dir() and any(out.iterdir()) and not (out / TABLE).is_file():
        raise ValueError(
            f"--out {out} is a folder without {TABLE}, so not of mtl-predict: --overwrite does not replace it."
        )


class Output:
    """The rows of a job, kept in ``<out>.part/`` until all are there; then ``out`` takes its place.

    ``job`` says in plain values what is predicted from what. A folder of another job is not gone on with. ``done`` are
    the inputs that have a row. ValueError if the folder is there and neither ``resume`` nor ``overwrite`` is asked for.
    """

    def __init__(self, out: Path, job: Mapping[str, Any], resume: bool, overwrite: bool) -> None:
        self._out, self.folder = out, out.with_name(f"{out.name}.part")
        self._rows: dict[int, dict[str, Any]] = {}
        file, head = self.folder / "rows.jsonl", json.dumps(job, sort_keys=True)
        if self.folder.exists() and not resume:
            if not overwrite:
                raise ValueError(
                    f"{self.folder} is of a job that was stopped: --resume goes on with it, --overwrite starts over."
                )
            if not file.is_file():
                raise ValueError(f"{self.folder} is not of mtl-predict, which needs that name: move it away.")
            shutil.rmtree(self.folder)
        if file.is_file():
            self._read(file, head)
        self.folder.mkdir(exist_ok=True)
        if not file.is_file():
            file.write_text(head + "\n")
        self._file = file.open("a")

    @property
    def done(self) -> set[int]:
        """The inputs that have a row."""
        return set(self._rows)

    def add(self, rows: Mapping[int, dict[str, Any]]) -> None:
        """Add the rows of some inputs, by their index; they are on the disk when this returns."""
        self._rows.update(rows)
        self._file.write("".join(f"{json.dumps([index, row])}\n" for index, row in rows.items()))
        self._file.flush()

    def finish(self) -> None:
        """Write the table, or make the folder the output."""
        self._file.close()
        rows = [self._rows[index] for index in sorted(self._rows)]
        if self._out.suffix:
            made = self.folder / f"table{self._out.suffix}"
            write_table(made, rows)
            os.replace(made, self._out)
            shutil.rmtree(self.folder)
            return
        write_table(self.folder / TABLE, rows)
        (self.folder / "rows.jsonl").unlink()
        if self._out.exists():
            shutil.rmtree(self._out)
        os.replace(self.folder, self._out)

    def leave(self) -> bool:
        """End before all is done; whether there is something to go on with. An empty job leaves nothing behind."""
        self._file.close()
        if not self._rows:
            shutil.rmtree(self.folder)
        return bool(self._rows)

    def _read(self, file: Path, head: str) -> None:
        whole = [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
        if whole and whole[0].rstrip("\n") != head:
            raise ValueError(
                f"{self.folder} is of another job: other checkpoints, inputs or options; --overwrite starts over."
            )
        self._rows = dict(map(json.loads, whole[1:]))
        file.write_text("".join(whole))  # without a line that was cut off


def write_table(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as CSV, Parquet or JSON lines, by the file's ending."""
    if file.suffix == ".jsonl":
        file.write_text("".join(f"{json.dumps(finite_or_null(row), ensure_ascii=False)}\n" for row in rows))
        return
    import pandas as pd

    table = pd.DataFrame(list(rows))
    if file.suffix == ".parquet":
        table.to_parquet(file, index=False)
    else:
        table.to_csv(file, index=False)
