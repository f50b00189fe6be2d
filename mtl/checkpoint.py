"""Checkpoints: written whole or not at all, verified when they are read, plain tensors and numbers inside."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import torch

FORMAT = 1


def save(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` to ``path`` and its sha256 to ``path.sha256``.

    The file is written under another name, flushed to the disk and renamed: a reader finds the old
    checkpoint or the new one, never a part.
    """
    temporary = path.with_name(f"{path.name}.tmp.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            torch.save({"format": FORMAT, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        new = f"{_sha256(temporary)}  {path.name}\n"
        # While the files change places, either content is right.
        old = _sidecar(path).read_text() if _sidecar(path).is_file() else ""
        _write_whole(_sidecar(path), new + old)
        os.replace(temporary, path)
        _write_whole(_sidecar(path), new)
    finally:
        temporary.unlink(missing_ok=True)


def carry_over(resumed: Path, folder: Path) -> None:
    """Copy the best checkpoint that lies beside the ``resumed`` one (or in that run folder) to a new run's folder."""
    best = (resumed / "checkpoints" if resumed.is_dir() else resumed.parent) / "best.pt"
    target = folder / "checkpoints" / "best.pt"
    if best.is_file() and best.resolve() != target.resolve():
        target.parent.mkdir(exist_ok=True)
        save(target, load(best))


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint, or a run folder's last one. ValueError if it is not there, broken, or no checkpoint.

    Only tensors and plain types are read (``weights_only``): a checkpoint cannot run code.
    """
    if path.is_dir():
        path = path / "checkpoints" / "last.pt"
    if not path.is_file():
        raise ValueError(f"There is no checkpoint {path}.")
    sidecar = _sidecar(path)
    if sidecar.is_file() and _sha256(path) not in sidecar.read_text().split():
        raise ValueError(f"The checkpoint {path} is broken: its content does not have the sha256 in {sidecar.name}.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{path} cannot be read as a checkpoint: {reason}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path} is not a checkpoint of format {FORMAT}, the one this version reads; it is {found}.")
    return content


def _sidecar(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _write_whole(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.tmp.{os.getpid()}")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
