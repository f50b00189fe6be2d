"""The checks of the data's files that need no torch: a missing folder or column is answered at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig, ListConfig

from mtl.config.source import text_of
from mtl.data.folder import find_root
from mtl.data.table_text import check_column, read_header
from mtl.errors import ConfigError

TABLE = "mtl.data.image_table.ImageTable"


def check_files(data: DictConfig) -> None:
    """ConfigError for a folder of one of our data sets that is not there, or a column that its table does not have.

    Other classes may make their folder themselves. Not for a sweep as a whole: its jobs may run on other machines.
    """
    module, root = str(data["_target_"]).rpartition(".")[0], data.get("root")
    source = text_of(module, "SOURCE") if module.startswith("mtl.data.") else None
    if source is None or not isinstance(root, str):
        return
    labels = data.get("labels", "labels.csv") if data["_target_"] == TABLE else None
    try:
        folder = find_root(root, {labels: "the labels"} if labels else {}, source)
        if labels:
            _check_columns(data, folder / labels)
    except ValueError as error:
        raise ConfigError(f"data.{error}") from error


def _check_columns(data: DictConfig, file: Path) -> None:
    header = read_header(file)
    for key, column in _named_columns(data) if header else ():
        check_column(header, column, key, file)


def _named_columns(data: DictConfig) -> Iterator[tuple[str, str]]:
    """The columns that the configuration of an image table names, with the key that names each."""
    named = {"image": data.get("image"), "split": data.get("split")}
    named |= {f"targets.{target!s}": columns for target, columns in (data.get("targets") or {}).items()}
    for key, columns in named.items():
        for column in columns if isinstance(columns, ListConfig) else [columns]:
            if isinstance(column, str):
                yield key, column
