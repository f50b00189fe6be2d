"""Reads the files of one run; loads neither torch nor NumPy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


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
