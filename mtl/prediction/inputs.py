"""The inputs that a command line names: files, folders, globs, and tables of paths or of features."""

from __future__ import annotations

import glob
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image
from torch.utils.data import Dataset

from mtl.data.image_paths import find_images
from mtl.data.table_text import check_column
from mtl.data.tables import PARQUET, read_rows, read_table, row_number

log = logging.getLogger(__name__)

TABLES = (".csv", ".tsv", PARQUET)


class Inputs(Dataset):
    """Raw inputs and their names, which are read and prepared by batches: ``collate`` makes one of a list of them.

    ``labels[i]`` are the cells that tell input i in a table, and ``places[i]`` is a path for files made of it.
    """

    def __init__(self, raws: Any, labels: Sequence[dict[str, Any]], collate: Callable[[Any], Any]) -> None:
        self._raws, self.labels, self._collate = raws, list(labels), collate
        self.places = _places(labels)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Sequence[int], epoch: int) -> Any:
        """The inputs of ``indices`` as a batch; ValueError, with the name of one alone, for what cannot be prepared."""
        rows = isinstance(self._raws, pd.DataFrame)
        try:
            return self._collate(self._raws.iloc[list(indices)] if rows else [self._raws[i] for i in indices])
        except Exception as error:
            name = self.name(indices[0])
            if len(indices) > 1 or (isinstance(error, ValueError) and self.labels[indices[0]]["file"] in str(error)):
                raise
            raise ValueError(f"{name}: {error}") from error

    def name(self, index: int) -> str:
        """What a person calls an input."""
        own = self.labels[index]
        return f"{own['file']}, row {own['row']}" if "row" in own else own["file"]


def find_inputs(
    given: Sequence[str], preprocess: Any, column: str | None = None, missing: Sequence[Any] = ()
) -> tuple[Any, list[dict[str, Any]]]:
    """The raw inputs that ``given`` (files, folders, globs) have, and the cells that tell each in a table.

    ``preprocess``: whose inputs they are, see mtl.data.preprocess. ``column``: of a table, the one with the paths of
    images, or with texts. ``missing``: values that mark a missing number in the training's table. ValueError for what
    is not there, and for a folder or a table without inputs.
    """
    takes = preprocess.takes
    files = [file for text in given for file in _files(text, takes)]
    if takes == "row":
        columns = getattr(preprocess, "columns", ())
        tables = [(file, _rows(file, columns, missing)) for file in dict.fromkeys(files)]
        labels = [{"file": str(file), "row": row_number(i)} for file, table in tables for i in range(len(table))]
        return pd.concat([table for _, table in tables], ignore_index=True), labels
    raws: list[Any] = []
    names: list[dict[str, Any]] = []
    for file in dict.fromkeys(files):
        if file.suffix.lower() in TABLES:
            own = [*_cells(file, takes, column)]
            raws += [raw for raw, _ in own]
            names += [label for _, label in own]
        else:
            raws.append(file)
            names.append({"file": str(file)})
    return raws, names


def _files(text: str, takes: str) -> list[Path]:
    path = Path(text)
    if path.is_file():
        if takes == "row" and path.suffix.lower() not in TABLES:
            raise ValueError(
                f"{text} is no table: the model takes rows, so give a file that ends in {', '.join(TABLES)}."
            )
        return [path]
    if path.is_dir():
        files = [file for file in path.rglob("*") if file.is_file() and not _is_hidden(file.relative_to(path))]
        found = sorted(file for file in files if _is_input(file, takes))
        if not found:
            raise ValueError(f"{text} has no {takes} in it: a folder's files count that {_accepted(takes)}.")
        if others := [file for file in files if not _is_input(file, takes)]:
            kinds = ", ".join(sorted({file.suffix or file.name for file in others})[:5])
            log.warning(
                "PASSED OVER: %d of %d files in %s, which are no %s: %s", len(others), len(files), text, takes, kinds
            )
        return found
    found = sorted(Path(name) for name in glob.glob(text, recursive=True) if Path(name).is_file())
    if not found:
        raise ValueError(f"There is no {text}." if not glob.has_magic(text) else f"{text} matches no file.")
    return found


def _is_hidden(file: Path) -> bool:
    return any(part.startswith(".") for part in file.parts)


def _is_input(file: Path, takes: str) -> bool:
    suffix = file.suffix.lower()
    if takes == "image":
        return suffix == ".npy" or suffix in Image.registered_extensions()
    return {"row": suffix in TABLES, "tensor": suffix == ".npy"}.get(takes, True)


def _accepted(takes: str) -> str:
    endings = {
        "image": "end as an image (.jpg, .png, …) or in .npy",
        "row": f"end in {', '.join(TABLES)}",
        "tensor": "end in .npy",
    }
    return endings.get(takes, "are not hidden")


def _cells(file: Path, takes: str, column: str | None) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Of each row of a table the raw input in one cell, and the cells that tell it."""
    table, name = read_table(file, column, (), file.parent if takes == "image" else None)
    check_column(table.columns, name, "--column", file)
    if takes != "image":
        if column is None and len(table.columns) > 1:
            raise ValueError(
                f"{file} has several columns, {', '.join(table.columns)}: --column says which has the {takes}s."
            )
        yield from ((cell, {"file": str(file), "row": row_number(i)}) for i, cell in enumerate(table[name]))
        return
    cells = table[name].astype(object).where(table[name].notna(), "").astype(str).tolist()
    paths = find_images(cells, file.parent)
    if not any(paths):
        raise ValueError(
            f"{file}: the column {name} has no path of an image in {file.parent}; --column names another of "
            f"{', '.join(table.columns)}."
        )
    yield from ((file.parent / (path or cell), {"file": cell}) for path, cell in zip(paths, cells, strict=True))


def _rows(file: Path, columns: Sequence[str], missing: Sequence[Any]) -> pd.DataFrame:
    table = read_rows(file, missing)
    if lacking := [name for name in columns if name not in table.columns]:
        raise ValueError(
            f"{file} lacks columns of the training: {', '.join(lacking)}; it has {', '.join(map(str, table.columns))}."
        )
    return table


def _places(labels: Sequence[dict[str, Any]]) -> list[str]:
    """For each input a relative path without a suffix, as of a file that is made of it; no two are the same."""
    files = [Path(own["file"]) for own in labels]
    shared = _common_folder(files)
    paths = [[part for part in file.parts if part not in (file.anchor, "..")][shared:] for file in files]
    plain = [
        f"row-{own['row']}" if "row" in own else Path(*path).with_suffix("").as_posix()
        for own, path in zip(labels, paths, strict=True)
    ]
    counts = Counter(plain)
    whole = [name if counts[name] == 1 else Path(*path).as_posix() for name, path in zip(plain, paths, strict=True)]
    again = Counter(whole)
    return [name if again[name] == 1 else f"{name}-{index}" for index, name in enumerate(whole)]


def _common_folder(files: Sequence[Path]) -> int:
    """The number of folders that all paths begin with."""
    folders = [[part for part in file.parts[:-1] if part not in (file.anchor, "..")] for file in files]
    return next((i for i, parts in enumerate(zip(*folders, strict=False)) if len({*parts}) > 1), min(map(len, folders)))
