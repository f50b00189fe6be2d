"""The checks of the data's files that need no torch: a missing folder or column is answered at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig, ListConfig

from mtl.config.source import text_of
from mtl.data.folder import find_root
from mtl.data.table_text import check_column, read_header
from mtl.errors import ConfigError

# The classes of tables: the key that names the file, what it is without one, and what is in it.
TABLES = {
    "mtl.data.image_table.ImageTable": ("labels", "labels.csv", "the labels"),
    "mtl.data.table.Table": ("file", "table.csv", "the table"),
    "mtl.data.domain_tables.DomainTables": ("files", None, "a table"),
}
NAMING = ("image", "split", "key", "inputs", "exclude")  # keys whose values are columns, beside targets


def check_files(data: DictConfig) -> None:
    """ConfigError for a folder of one of our data sets that is not there, or a column that its table does not have.

    Other classes may make their folder themselves. Not for a sweep as a whole: its jobs may run on other machines.
    """
    module, root = str(data["_target_"]).rpartition(".")[0], data.get("root")
    source = text_of(module, "SOURCE") if module.startswith("mtl.data.") else None
    if source is None or not isinstance(root, str):
        return
    key, usual, what = TABLES.get(data["_target_"], ("", None, ""))
    given = data.get(key, usual)
    files = [] if given is None else [given] if isinstance(given, str) else list(given.values())
    try:
        folder = find_root(root, dict.fromkeys(files, what), source, suggest=True)
        for file in files if key != "files" else ():  # columns may be in one of several tables alone
            _check_columns(data, folder / file)
    except ValueError as error:
        raise ConfigError(f"data.{error}") from error


def _check_columns(data: DictConfig, file: Path) -> None:
    header = read_header(file)
    for key, column in _named_columns(data) if header else ():
        check_column(header, column, key, file)


def _named_columns(data: DictConfig) -> Iterator[tuple[str, str]]:
    """The columns that the configuration of a table names, with the key that names each."""
    named = {key: data.get(key) for key in NAMING}
    targets = data.get("targets")
    by_name = targets.items() if isinstance(targets, DictConfig) else ()
    named |= {f"targets.{target!s}": columns for target, columns in by_name} or {"targets": targets}
    for key, columns in named.items():
        for column in columns if isinstance(columns, ListConfig) else [columns]:
            if isinstance(column, str):
                yield key, column
