"""The small files of a run's folder: written whole or not at all, and read again."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from mtl.errors import first_line

OVERRIDES = "# overrides: "  # begins the first line of config.yaml; a JSON list of the run's overrides follows


def write_atomic(path: Path, text: str, fsync: bool = False) -> None:
    """Write a small file whole or not at all: to a temporary name, then renamed; with ``fsync`` also to the disk."""
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


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a small JSON file atomically."""
    write_atomic(path, json.dumps(finite_or_null(content), indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The content of a small JSON file; empty if the file is missing or incomplete."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def read_metrics(folder: Path, split: str) -> list[dict[str, Any]]:
    """The rows of one split in a run's metrics.jsonl, without a truncated last line."""
    with (folder / "metrics.jsonl").open() as file:
        rows = [json.loads(line) for line in file if line.endswith("\n")]
    return [row for row in rows if row["split"] == split]


def read_yaml(path: Path) -> Any:
    """The content of a YAML file in plain types. Interpolations stay unresolved: they may refer to secrets."""
    return OmegaConf.to_container(OmegaConf.load(path), resolve=False)


def finite_or_null(value: Any) -> Any:
    """``value`` with None in place of NaN and the infinities, which JSON cannot represent."""
    if isinstance(value, Mapping):
        return {key: finite_or_null(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_null(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_status(folder: Path, status: str, error: str | None = None) -> None:
    """Write status.json: a run's status, start, last change, host, load average, and the first line of its error.

    The status is ``running``, ``finished``, ``failed``, ``preempted`` (the run was asked to stop and saved its state)
    or ``oom`` (out of memory). It stays ``running`` if the process is killed. A resumed run keeps its first start.
    """
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    load = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None  # Windows has none
    content = {"status": status, "started": read_status(folder).get("started", now), "time": now}
    content |= {"host": platform.node(), "load": load}
    if error is not None:
        content["error"] = first_line(error)
    write_json(folder / "status.json", content)


def read_status(folder: Path) -> dict[str, Any]:
    """The content of status.json; an empty dict if there is no such file."""
    return read_json(folder / "status.json")


def read_overrides(folder: Path) -> list[str] | None:
    """The overrides in the first line of a run's config.yaml; None if there are none."""
    file = folder / "config.yaml"
    if not file.is_file():
        return None
    with file.open() as lines:
        first = lines.readline()
    try:
        return json.loads(first.removeprefix(OVERRIDES)) if first.startswith(OVERRIDES) else None
    except json.JSONDecodeError:
        return None


def run_folder(path: Path) -> Path | None:
    """The run folder of ``path``, which is the folder itself or a checkpoint in it; None if there is none."""
    parents = path.absolute().parents
    folder = path if path.is_dir() else parents[1] if parents[0].name == "checkpoints" else None
    known = ("status.json", "config.yaml", "metrics.jsonl", ".hydra")
    return folder if folder is not None and any((folder / name).exists() for name in known) else None
