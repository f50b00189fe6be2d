"""metrics.jsonl: one JSON object a line, appended, and truncated when a run resumes."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

from mtl.runs.files import write_atomic

log = logging.getLogger(__name__)


def truncate_to_step(path: Path, step: int) -> None:
    """Leave only the rows of a metrics.jsonl that a run had written when it was at ``step``: it writes the rest again.

    A last line that was cut off goes as well, and so does the final test. ValueError if another line is broken.
    """
    if not path.is_file():
        return
    lines = path.read_text().splitlines(keepends=True)
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append((line, json.loads(line)))
        except json.JSONDecodeError as error:
            if line.endswith("\n"):
                raise ValueError(f"{path} is broken: line {number} is no JSON; mend or remove it.") from error
    write_atomic(path, "".join(line for line, row in rows if row["step"] <= step and row["split"] != "test"))


class Record:
    """An append-only file of lines. Where the disk is full, lines wait in memory until they can be written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("ab", buffering=0)
        self._end = self._file.seek(0, os.SEEK_END)  # after the last line that was written whole
        self._waiting = b""

    def append(self, line: str) -> None:
        """Write one line, or keep it until it can be written."""
        first = not self._waiting
        self._waiting += line.encode()
        try:
            self._write()
        except OSError as error:
            if first:
                log.warning("%s cannot be written (%s); its lines wait in memory.", self._path, error.strerror)

    def flush(self) -> None:
        """Everything to the disk itself; OSError if it cannot be written."""
        self._write()
        os.fsync(self._file.fileno())

    def _write(self) -> None:
        rest = memoryview(self._waiting)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            self._file.truncate(self._end)  # no half lines for those who read along
            raise
        self._end += len(self._waiting)
        self._waiting = b""

    def close(self) -> None:
        """Write what waits; OSError if it cannot be written."""
        try:
            if self._waiting:
                self.flush()
        finally:
            self._file.close()
