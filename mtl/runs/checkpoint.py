"""Checkpoints: plain tensors and numbers, written atomically and verified when they are read."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mtl.errors import first_line
from mtl.runs.files import write_atomic

log = logging.getLogger(__name__)

FORMAT = 5  # of the content; no other is read
FOLDER = "checkpoints"  # in a run's folder


def save(path: Path, content: dict[str, Any], also: Sequence[str] = ()) -> None:
    """Write ``content`` to ``path`` and its sha256 to ``path.sha256``; ``also``: further names of the same file.

    The file is written to a temporary name, flushed to the disk and renamed: a reader finds the old checkpoint or the
    new one, never a part. The further names are hard links if the file system has them, and take no space. OSError, or
    torch's RuntimeError on a full disk, if the checkpoint cannot be written; the previous one is then unchanged.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save({"format": FORMAT, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        digest = _sha256(temporary)
        _publish(temporary, path, digest)
    finally:
        temporary.unlink(missing_ok=True)
    for name in also:
        _link(path, path.with_name(name), digest)


def remove(path: Path) -> None:
    """Delete a checkpoint and its sha256."""
    path.unlink(missing_ok=True)
    _sidecar(path).unlink(missing_ok=True)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint, or the last one of a run folder. ValueError if it is missing, broken, or of another format.

    Only tensors and plain types are read (``weights_only``), so that reading runs no code from the file.
    """
    if path.is_dir():
        path = path / FOLDER / "last.pt"
    if not path.is_file():
        raise ValueError(f"There is no checkpoint {path}.")
    verified = _verify(path)
    content = _read(path)
    if not verified:
        log.warning("%s has no .sha256 file beside it: its content could not be verified.", path)
    return content


def latest_valid(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The valid checkpoint of a run folder with the highest step; None if there are no checkpoints.

    A broken checkpoint is passed over with a warning. ValueError if all are broken: only the user may decide that the
    run starts over.
    """
    steps: dict[Path, int] = {}
    for path in sorted((folder / FOLDER).glob("*.pt"), key=lambda path: path.name != "last.pt"):
        try:
            steps[path] = _read(path, mmap=True)["step"]
        except ValueError as error:
            _warn_passed_over(error)
    for path in sorted(steps, key=lambda path: -steps[path]):
        try:
            return path, load(path)
        except ValueError as error:
            _warn_passed_over(error)
    if any((folder / FOLDER).glob("*.pt")):
        raise ValueError(f"none of the checkpoints in {folder / FOLDER} can be used: move them away to start over.")
    return None


def step_of(path: Path) -> int | None:
    """The step of a checkpoint; None if it is missing or broken."""
    if not path.is_file():
        return None
    try:
        _verify(path)
        return _read(path, mmap=True)["step"]
    except ValueError:
        return None


def restore_folder(folder: Path, step: int, best_step: int) -> bool:
    """Bring a run folder's checkpoints back to their state at ``step``; returns whether best.pt is of ``best_step``.

    Later checkpoints are removed; broken ones are renamed to ``*.broken``. If the process was killed between writing
    last.pt and linking best.pt, the link is restored.
    """
    folder = folder / FOLDER
    steps = {path: step_of(path) for path in sorted(folder.glob("*.pt"))}
    for name, wanted in (("last.pt", step), ("best.pt", best_step)):
        source = next((path for path, found in steps.items() if found == wanted), None)
        if source is not None and steps.get(folder / name) != wanted:
            _link(source, folder / name)
            steps[folder / name] = wanted
    for path, found in steps.items():
        if found is None:
            path.rename(path.with_name(f"{path.name}.broken"))
        elif found > step:
            remove(path)
    return steps.get(folder / "best.pt") == best_step


def _warn_passed_over(error: ValueError) -> None:
    log.warning("PASSED OVER: %s Resuming goes on with an older checkpoint, if there is one.", error)


def _verify(path: Path) -> bool:
    """Whether there is a sha256 to compare with; ValueError if it differs from the file's."""
    sidecar = _sidecar(path)
    if sidecar.is_file() and _sha256(path) not in sidecar.read_text().split():
        raise ValueError(f"The checkpoint {path} is broken: its content does not have the sha256 in {sidecar.name}.")
    return sidecar.is_file()


def _read(path: Path, mmap: bool = False) -> dict[str, Any]:
    try:
        # With mmap only the tensors that are used are read from the disk.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (OSError, MemoryError):  # not a fault of the file
        raise
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a checkpoint: {first_line(error)}") from error
    if not isinstance(content, dict) or not {"format", "step"} <= content.keys():
        raise ValueError(f"{path} is not a checkpoint of mtl.")
    if content["format"] != FORMAT:
        lacks = ", which lacks the classes, statistics and splits of its data" if content["format"] < FORMAT else ""
        raise ValueError(
            f"{path} is a checkpoint of format {content['format']}{lacks}; this version reads format {FORMAT}."
        )
    return content


def _publish(temporary: Path, path: Path, digest: str) -> None:
    """Rename ``temporary`` to ``path``. The sidecar lists both digests meanwhile, so that either content is valid."""
    new = f"{digest}  {path.name}\n"
    old = _sidecar(path).read_text() if _sidecar(path).is_file() else ""
    write_atomic(_sidecar(path), new + old, fsync=True)
    os.replace(temporary, path)
    write_atomic(_sidecar(path), new, fsync=True)
    _flush_folder(path.parent)


def _link(path: Path, other: Path, digest: str | None = None) -> None:
    """Publish the file ``path`` under the name ``other`` as well: a hard link, or a copy."""
    temporary = other.with_name(f"{other.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        try:
            os.link(path, temporary)
        except OSError:  # not every file system has hard links
            shutil.copyfile(path, temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        _publish(temporary, other, digest or _sha256(path))
    finally:
        temporary.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    # A new name reaches the disk only with its folder.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sidecar(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
