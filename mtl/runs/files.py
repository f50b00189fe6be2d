"""The small files of a run's folder, written whole or not at all."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mtl.errors import first_line


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a small JSON file whole: under another name first, then renamed."""
    write_atomic(path, json.dumps(finite_or_null(content), indent=2, allow_nan=False) + "\n")


def write_atomic(path: Path, text: str, fsync: bool = False) -> None:
    """Write a small file whole or not at all: under another name first, then renamed. ``fsync``: and to the disk."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("w") as file:
            file.write(text)
            if fsync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def finite_or_null(value: Any) -> Any:
    """``value`` with null for what JSON has no number for: NaN and the infinities."""
    if isinstance(value, Mapping):
        return {key: finite_or_null(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_null(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_status(folder: Path, status: str, error: str | None = None) -> None:
    """Write status.json: how a run stands, since when, and its error's first line.

    It is ``running``, ``finished``, ``failed``, ``preempted`` (asked to stop, and it saved its state) or ``oom`` (out
    of memory). A process that was killed leaves it at ``running``.
    """
    content = {"status": status, "time": datetime.now(timezone.utc).isoformat(timespec="seconds")}
    if error is not None:
        content["error"] = first_line(error)
    write_json(folder / "status.json", content)


def run_folder(path: Path) -> Path | None:
    """The run folder that ``path`` names: itself, or the one whose checkpoint it is; None where there is none."""
    parents = path.absolute().parents
    folder = path if path.is_dir() else parents[1] if parents[0].name == "checkpoints" else None
    known = ("status.json", "config.yaml", "metrics.jsonl", ".hydra")
    return folder if folder is not None and any((folder / name).exists() for name in known) else None
