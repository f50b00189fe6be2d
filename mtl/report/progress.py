"""How far a run is, when it should end, and whether it still writes: from the ends of its files."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from pathlib import Path
from typing import Any

from mtl.report.runs import read_config
from mtl.runs.files import read_json

TAIL = 65536  # bytes at the end of metrics.jsonl, which hold its last rows
PATIENCE = 10  # intervals between rows, and at least a minute, after which a run that writes nothing counts as silent
MINUTE = timedelta(minutes=1)


@dataclass(frozen=True)
class Progress:
    """A run at some moment. ``step`` of ``total`` is None before the first row, ``total`` without a plan.

    ``end``: when it should end if a step goes on taking as long; None for a resumed run, whose pause would count.
    ``silent``: how long a running run has written nothing, where that is long: it may hang, or was killed.
    """

    name: str
    status: str
    error: str | None = None
    step: int | None = None
    total: int | None = None
    end: datetime | None = None
    silent: timedelta | None = None


def progress_of(folder: Path, name: str, now: datetime) -> Progress:
    """The progress of the run in ``folder``, called ``name``, at ``now``."""
    told = read_json(folder / "status.json")
    status, error = told.get("status", "unknown"), told.get("error")
    rows, written = _last_rows(folder / "metrics.jsonl")
    step = int(rows[-1]["step"]) if rows else None
    total = _total(folder, rows[-1]) if rows else None
    started, changed = _time(told.get("started")), _time(told.get("time"))
    if status != "running" or started is None:
        return Progress(name, status, error, step, total)
    if step is None or written is None:
        return Progress(name, status, error, silent=now - started if now - started > MINUTE else None)
    a_step = (written - started) / step
    end = written + a_step * (total - step) if total and started == changed else None
    silence = now - written
    long = silence > max(MINUTE, PATIENCE * a_step * (step - int(rows[0]["step"])))
    return Progress(name, status, error, step, total, end, silence if long else None)


def _last_rows(file: Path) -> tuple[list[dict[str, Any]], datetime | None]:
    """The rows of the last two steps, or of one, and when the file was written last; nothing where there is no row."""
    try:
        with file.open("rb") as content:
            size = content.seek(0, os.SEEK_END)
            content.seek(max(0, size - TAIL))
            lines = content.read().split(b"\n")[1 if size > TAIL else 0 : -1]  # no line that is cut
            written = datetime.fromtimestamp(os.fstat(content.fileno()).st_mtime, timezone.utc)
        rows = {row["step"]: row for row in map(json.loads, lines)}
    except (OSError, ValueError, KeyError, TypeError):
        return [], None
    return list(rows.values())[-2:], written


def _total(folder: Path, row: dict[str, Any]) -> int | None:
    """The steps that the run has planned, at most: with patience it may end before."""
    try:
        trainer = _config(folder / "config.yaml", (folder / "config.yaml").stat().st_mtime_ns).get("trainer") or {}
    except OSError:
        return None
    if trainer.get("fast_dev_run"):
        return 1
    epochs, epoch = trainer.get("max_epochs"), row.get("epoch")
    by_epochs = round(epochs * row["step"] / epoch) if epochs and epoch else None
    known = [int(limit) for limit in (trainer.get("max_steps"), by_epochs) if limit]
    return min(known, default=None)


@lru_cache(maxsize=1024)
def _config(file: Path, changed: int) -> dict[str, Any]:
    return read_config(file)


def _time(text: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
