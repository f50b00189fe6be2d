"""metrics.jsonl: one JSON object per line, appended during a run and truncated when it resumes."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

from mtl.runs.files import write_atomic

log = logging.getLogger(__name__)


def truncate_to_step(path: Path, step: int) -> None:
    """Remove the rows of a metrics.jsonl after ``step``: the resumed run writes them again.

    The rows of the test split and an incomplete last line are removed as well. ValueError if another line is broken.
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
    """An append-only file of lines. While the disk is full, lines wait in memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("ab", buffering=0)
        self._end = self._file.seek(0, os.SEEK_END)  # of the last complete line
        self._pending = b""

    def append(self, line: str) -> None:
        """Write one line, or keep it in memory until it can be written."""
        first = not self._pending
        self._pending += line.encode()
        try:
            self._write()
        except OSError as error:
            if first:
                log.warning("%s cannot be written (%s); its lines wait in memory.", self._path, error.strerror)

    def flush(self) -> None:
        """Write all lines through to the disk; OSError if that fails."""
        self._write()
        os.fsync(self._file.fileno())

    def _write(self) -> None:
        rest = memoryview(self._pending)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            self._file.truncate(self._end)  # a reader must not find half a line
            raise
        self._end += len(self._pending)
        self._pending = b""

    def close(self) -> None:
        """Write the pending lines; OSError if that fails."""
        try:
            if self._pending:
                self.flush()
        finally:
            self._file.close()
