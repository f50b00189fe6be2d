"""The images that a table names: the files behind paths of other systems, and the column that has them."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
from PIL import Image

log = logging.getLogger(__name__)

TRIED = 20  # rows that tell which column has the images' paths


def find_image_column(table: pd.DataFrame, folder: Path) -> str:
    """The first column with paths of files in ``folder``, or the first of all where none has any."""
    for column in table.columns:
        tried = [str(name) for name in table[column].dropna().head(TRIED)]
        if any(name is not None for name in find_images(tried, folder)):
            if column != table.columns[0]:
                log.info("the images' paths are in the column %s", column)
            return str(column)
    return str(table.columns[0])


def find_images(names: Sequence[str], folder: Path) -> list[str | None]:
    """The path in ``folder`` of each image's name; None where there is no such file.

    A name that is no file may be one with other slashes, in another Unicode form, in other case or without its suffix,
    if that is one file alone.
    """
    found = [name if name and (folder / name).is_file() else None for name in names]
    wanted = {name for name, path in zip(names, found, strict=True) if path is None}
    if not wanted:
        return found
    files: dict[str, set[str]] = {}
    for name in sorted({_plain(name).rpartition("/")[0] for name in wanted}):
        for path in _images_in(folder, name):
            for key in (_plain(path), _plain(path).rpartition(".")[0]):
                files.setdefault(key, set()).add(path)
    one = {name: next(iter(same)) for name in wanted if len(same := files.get(_plain(name), set())) == 1}
    return [path or one.get(name) for name, path in zip(names, found, strict=True)]


def _plain(name: str) -> str:
    """What the spellings of one path have in common."""
    text = unicodedata.normalize("NFC", name).strip().replace("\\", "/").casefold()
    return text.removeprefix("./")


def _images_in(folder: Path, below: str) -> Iterator[str]:
    """The images in the folder ``below`` a folder, whose name may be spelt as in _plain, by their paths."""
    places = [folder]
    for part in below.split("/") if below else []:
        places = [own for place in places for own in place.iterdir() if own.is_dir() and _plain(own.name) == part]
    for place in places:
        for file in place.iterdir():
            if file.suffix.lower() in Image.registered_extensions() and file.is_file():
                yield file.relative_to(folder).as_posix()
