"""The folder of a data set, without torch: what it lacks is said at the start, an unreadable file by its path."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mtl.errors import first_line


def find_root(root: str, needed: Mapping[str, str], source: str, suggest: bool = False) -> Path:
    """The folder ``root``, which must contain all ``needed`` paths (relative path -> description).

    ValueError with the missing paths, the folder, and ``source``: a sentence on how to get the files. ``suggest``: the
    user has named the paths, and may have meant a file with nearly that name.
    """
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise ValueError(f"root={root}: there is no folder {folder.absolute()}: {source}")
    lacking = {path: what for path, what in needed.items() if not (folder / path).exists()}
    missing = [f"{path} ({what}{_close(folder / path) if suggest else ''})" for path, what in lacking.items()]
    if missing:
        raise ValueError(f"root={root}: {folder.absolute()} lacks {', '.join(missing)}: {source}")
    return folder


def _close(path: Path) -> str:
    """A file with nearly the name of one that is not there, in words."""
    names = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {close[0]}?" if close else ""


@contextmanager
def errors_named_by(file: Path) -> Iterator[None]:
    """Turn every error inside the context into a ValueError that names the file."""
    if not file.is_file():
        raise ValueError(f"{file} does not exist.")
    try:
        yield
    except Exception as error:
        raise ValueError(f"{file} cannot be read: {first_line(error)}") from error
