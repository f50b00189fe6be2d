"""Reads the file ``run-<id>.wandb`` of an offline W&B run: a LevelDB log of protobuf records.

wandb 0.30 dropped its own reader (``wandb.sdk.internal.datastore``), and ``wandb leet inspect`` takes over a
second. Call ``wandb.teardown()`` first: ``finish()`` returns before the file is flushed.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

BLOCK = 32768  # a LevelDB log is made of blocks of this size …
FRAME = struct.Struct("<IHB")  # … of pieces with this header: checksum, length, kind
FIRST_BLOCK = b":W&B"  # after seven bytes of W&B's own
WHOLE, LAST = 1, 4  # kinds of pieces that end a record


@dataclass
class RecordedRun:
    """The content of a run's file. Values are decoded from JSON; NaN and the infinities are floats."""

    folder: Path
    id: str = ""
    name: str = ""
    group: str = ""
    job_type: str = ""
    project: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    axes: dict[str, str] = field(default_factory=dict)  # metric or glob → the metric that is its x axis
    exit_code: int | None = None  # None: the run was not finished

    def column(self, name: str) -> list[Any]:
        """The values of one metric, in the rows that have it."""
        return [row[name] for row in self.rows if name in row]


def recorded_runs(folder: Path) -> list[RecordedRun]:
    """Every run recorded in a Tracker's folder."""
    return [read_run(path) for path in sorted((folder / "wandb").glob("*run-*/run-*.wandb"))]


def recorded_run(folder: Path) -> RecordedRun:
    """The only run recorded in a Tracker's folder."""
    (run,) = recorded_runs(folder)
    return run


def read_run(path: Path) -> RecordedRun:
    run = RecordedRun(path.parent)
    for record in _records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            header = record.run
            run.id, run.name, run.group = header.run_id, header.display_name, header.run_group
            run.job_type, run.project, run.tags = header.job_type, header.project, list(header.tags)
            run.config |= {item.key: json.loads(item.value_json) for item in header.config.update}
        elif kind == "history":
            run.rows.append({_key(item): json.loads(item.value_json) for item in record.history.item})
        elif kind == "summary":
            run.summary |= {_key(item): json.loads(item.value_json) for item in record.summary.update}
        elif kind == "metric" and record.metric.step_metric:
            run.axes[record.metric.name or record.metric.glob_name] = record.metric.step_metric
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run


def _key(item: Any) -> str:
    return item.key or ".".join(item.nested_key)


def _records(path: Path) -> Iterator[Record]:
    data = path.read_bytes()
    assert data.startswith(FIRST_BLOCK), f"{path} is not a W&B run"
    position, pieces = 7, b""
    while position + FRAME.size <= len(data):
        left = BLOCK - position % BLOCK
        if left < FRAME.size:  # the rest of a block that is too short for a header is padding
            position += left
            continue
        _, length, kind = FRAME.unpack_from(data, position)
        position += FRAME.size
        pieces += data[position : position + length]
        position += length
        if kind in (WHOLE, LAST):
            yield Record.FromString(pieces)
            pieces = b""
