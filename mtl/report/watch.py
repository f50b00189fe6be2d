"""mtl-report --watch: the page of runs that go on, served on loopback and renewed while their files change."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any

from mtl.report.compare import compare
from mtl.report.page import contents, fill
from mtl.report.progress import Progress, progress_of
from mtl.report.runs import ReportError, Run, find_folders, read_run

FILES = ("metrics.jsonl", "status.json", "summary.json", "config.yaml")
REST = 20  # the page is not made again before as many times the time that it took: training needs the processor
LOOPBACK = ("127.0.0.1", "localhost")

Stamp = tuple[tuple[int, int] | None, ...]  # time and size of each of a run's files


class Watched:
    """Runs whose files change: what the page shows of them, made again only after a change, and their progress."""

    def __init__(self, paths: Sequence[Path], title: str, tune: Sequence[str] = ()) -> None:
        self._paths, self._title, self._tune = paths, title, tune
        self._read: dict[Path, tuple[Stamp, Run]] = {}
        self._lock = Lock()
        self._made: dict[Path, Stamp] = {}
        self._next = 0.0  # when it may be made again
        self._version = 0
        self._content: tuple[dict[str, Any], dict[str, str]] = ({}, {})
        self.content()

    def content(self) -> tuple[dict[str, Any], dict[str, str]]:
        """The page's content and figures (mtl.report.page.contents), of now or a little before; ReportError."""
        with self._lock:
            if self._is_due():
                self._make()
            return self._content

    def state(self) -> dict[str, Any]:
        """The version of the content to be had now, and the progress of every run."""
        now = datetime.now(timezone.utc)
        found = [progress_of(folder, name, now) for folder, name in find_folders(self._paths).items()]
        return {"version": self._version + self._is_due(), "runs": [_as_json(own) for own in found]}

    def _is_due(self) -> bool:
        return time.monotonic() >= self._next and self._made != self._stamps()

    def _stamps(self) -> dict[Path, Stamp]:
        return {folder: tuple(_stamp(folder / name) for name in FILES) for folder in find_folders(self._paths)}

    def _make(self) -> None:
        start, stamps = time.monotonic(), self._stamps()
        names = find_folders(self._paths)
        for folder, stamp in stamps.items():
            if folder not in self._read or self._read[folder][0] != stamp:
                self._read[folder] = stamp, read_run(folder, names[folder])
        runs = [self._read[folder][1] for folder in stamps]
        content, drawn = contents(compare(runs, self._tune, growing=True), self._title)
        self._version += 1
        self._content = content | {"version": self._version}, drawn
        self._made, self._next = stamps, time.monotonic() + REST * (time.monotonic() - start)


def _stamp(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _as_json(progress: Progress) -> dict[str, Any]:
    silent = progress.silent and round(progress.silent.total_seconds())
    return vars(progress) | {"end": progress.end and progress.end.isoformat(), "silent": silent}


def watch(paths: Sequence[Path], title: str, tune: Sequence[str], host: str, port: int) -> ThreadingHTTPServer:
    """A server of the page at ``host``, bound but not yet serving; ReportError for runs that there are not, or a port.

    It answers GET alone: ``/`` is the page, ``/content`` what it shows, ``/state`` the progress of the runs.
    """
    watched = Watched(paths, title, tune)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            """Answer one request."""
            asked = self.headers.get("Host", "").partition(":")[0]
            if host in LOOPBACK and asked not in LOOPBACK:  # a page from elsewhere, under a name that leads here
                return self.send_error(HTTPStatus.FORBIDDEN)
            answers = {"/": _page, "/content": _content, "/state": lambda watched: json.dumps(watched.state())}
            if self.path not in answers:
                return self.send_error(HTTPStatus.NOT_FOUND)
            try:
                return self._answer(HTTPStatus.OK, answers[self.path](watched))
            except ReportError as error:  # the folder is gone
                return self._answer(HTTPStatus.SERVICE_UNAVAILABLE, str(error))

        def _answer(self, status: HTTPStatus, text: str) -> None:
            body = text.encode()
            self.send_response(status)
            kind = "text/html" if self.path == "/" and status == HTTPStatus.OK else "application/json"
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Print nothing: the page asks every few seconds."""

    try:
        return ThreadingHTTPServer((host, port), Handler)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ReportError(
            f"--port {port} cannot be opened on {host} ({reason}): give another one, or --port 0 for any that is free."
        ) from error


def _page(watched: Watched) -> str:
    return fill(*watched.content(), live=True)


def _content(watched: Watched) -> str:
    content, drawn = watched.content()
    return json.dumps({"content": content, "figures": drawn})
