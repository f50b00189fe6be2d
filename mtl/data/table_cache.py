"""The numbers that a table has become, in files that are mapped into memory and found again; without torch."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

VERSION = 1  # of what is in the files
FOUND = "found.json"
SHARE = 0.5  # of the machine's memory that the numbers of a table may take without a cache

Stamps = dict[str, tuple[int, int]]


def stamps(files: Sequence[Path]) -> Stamps:
    """Size and time of change of every file; ValueError for one that is not there."""
    for file in files:
        if not file.is_file():
            raise ValueError(f"{file} does not exist.")
    return {str(file): (file.stat().st_size, file.stat().st_mtime_ns) for file in files}


def check_unchanged(before: Stamps) -> None:
    """ValueError for a file that is not as it was."""
    for file, stamp in before.items():
        now = stamps([Path(file)])[file] if Path(file).exists() else None
        if now != stamp:
            raise ValueError(f"{file} changed while it was read; start again when it is written.")


def fingerprint(*parts: Any) -> str:
    """A name for what a cache has, made of all that decides it."""
    return hashlib.sha256(json.dumps([VERSION, *parts], default=str, sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time, such as the ranks of a run, makes what is in a folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        yield


def load(folder: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]] | None:
    """What :func:`save` has written, with the arrays mapped into memory; None where there is nothing."""
    if not (folder / FOUND).is_file():
        return None
    found = json.loads((folder / FOUND).read_text())
    return found["plain"], {name: np.load(folder / file, mmap_mode="r") for name, file in found["arrays"].items()}


def save(folder: Path, plain: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write plain values and arrays; those that :func:`new_array` has made in the folder are there already."""
    names = {}
    for i, (name, own) in enumerate(arrays.items()):
        names[name] = Path(own.filename).name if isinstance(own, np.memmap) and own.filename else f"{i}.npy"
        if not isinstance(own, np.memmap):
            np.save(folder / names[name], own)
    written = folder / f"{FOUND}.new"
    written.write_text(json.dumps({"plain": plain, "arrays": names}))
    written.rename(folder / FOUND)  # the last step: a folder without it is not whole


def alias(folder: Path, name: str) -> None:
    """Another name for what a folder has."""
    other = folder.with_name(name)
    if not other.exists():
        other.unlink(missing_ok=True)  # a name of a folder that is gone
        other.symlink_to(folder.name)


def emptied(folder: Path) -> Path:
    """The folder, without what another process may have left in it."""
    if folder.is_symlink():
        folder.unlink()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def new_array(folder: Path | None, name: str, shape: tuple[int, int], dtype: Any) -> NDArray[Any]:
    """An array to be written, in a file of the folder; in memory without one.

    ValueError, naming data.cache, where memory is too small for that.
    """
    if folder is not None:
        return np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, shape)
    size = shape[0] * shape[1] * np.dtype(dtype).itemsize
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > SHARE * memory:
        raise ValueError(
            f"the table's {name} take {size / 1e9:.0f} GB of {memory / 1e9:.0f} GB of memory: give data.cache=… a "
            "folder of a fast disk, from which they are then read."
        )
    return np.empty(shape, dtype)
