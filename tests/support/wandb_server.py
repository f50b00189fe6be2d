"""A minimal W&B server on 127.0.0.1, with the requests that an online run needs, and with injected faults."""

from __future__ import annotations

import gzip
import json
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

KEY = "k" * 40  # any key of this length will do


@dataclass
class UploadedRun:
    """The data that arrived of one run."""

    created: dict[str, Any] = field(default_factory=dict)  # the variables of UpsertBucket, the latest of each
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)  # by offset: a repeated row counts once
    exit_code: int | None = None

    @property
    def config(self) -> dict[str, Any]:
        return {key: item["value"] for key, item in json.loads(self.created["config"]).items()}

    def column(self, name: str) -> list[Any]:
        """The values of one metric, in the rows that have it."""
        return [row[name] for _, row in sorted(self.rows.items()) if name in row]


class WandbServer:
    """Serves on a free port as a context manager. ``faults`` maps a part of a path to the fault of its answers.

    A fault is an HTTP status, ``"drop"`` (the connection is closed without an answer) or ``"hang"`` (it stays open).
    A run needs answers to two requests, UpsertBucket and the file stream; errors of others do no harm.
    """

    def __init__(self) -> None:
        self.runs: dict[str, UploadedRun] = defaultdict(UploadedRun)
        self.faults: dict[str, int | str] = {}
        self.over = threading.Event()
        self.refused = 0  # requests answered with an error of ``faults``
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"state": self}))
        self._http.daemon_threads = True

    def __enter__(self) -> WandbServer:
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.over.set()
        self._http.shutdown()
        self._http.server_close()

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables that point wandb to this server."""
        return {"WANDB_BASE_URL": f"http://127.0.0.1:{self._http.server_port}", "WANDB_API_KEY": KEY}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: WandbServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        faults = [status for part, status in self.state.faults.items() if part in self.path]
        if faults:
            self.state.refused += 1
            self._fail(faults[0])
        elif self.path == "/graphql":
            self._graphql(json.loads(body))
        elif self.path.endswith("/file_stream"):
            self._file_stream(self.path.split("/")[-2], json.loads(body))
        else:
            self._answer({})

    def _fail(self, fault: int | str) -> None:
        if isinstance(fault, int):
            self._answer({"error": "out of order"}, fault)
            return
        if fault == "hang":
            self.state.over.wait()
        self.close_connection = True

    def _graphql(self, request: dict[str, Any]) -> None:
        if "RunResumeStatus" in request["query"]:
            self._resume_status(request["variables"])
            return
        if "upsertBucket" not in request["query"]:
            self._answer({"errors": [{"message": "not implemented"}]})
            return
        sent = {key: value for key, value in request["variables"].items() if value is not None}
        run = self.state.runs[sent["name"]]
        run.created |= sent
        project = {"id": "p", "name": sent.get("project", "mtl"), "entity": {"id": "e", "name": "someone"}}
        bucket = {"id": sent["name"], "name": sent["name"], "displayName": sent.get("displayName")}
        bucket |= {"project": project, "description": None, "config": "{}", "historyLineCount": 0}
        self._answer({"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}})

    def _resume_status(self, asked: dict[str, Any]) -> None:
        run = self.state.runs.get(asked["name"])
        bucket = None
        if run is not None:
            bucket = {"id": asked["name"], "name": asked["name"], "displayName": run.created.get("displayName")}
            bucket |= {"summaryMetrics": "{}", "historyLineCount": len(run.rows), "eventsLineCount": 0, "tags": []}
            bucket |= {"logLineCount": 0, "historyTail": "[]", "eventsTail": "[]", "config": run.created["config"]}
            bucket |= {"wandbConfig": '{"t": 1}'}
        self._answer({"data": {"model": {"id": "m", "name": "mtl", "entity": {"name": "someone"}, "bucket": bucket}}})

    def _file_stream(self, run_id: str, sent: dict[str, Any]) -> None:
        run, history = self.state.runs[run_id], sent.get("files", {}).get("wandb-history.jsonl")
        if history is not None:
            run.rows |= {history["offset"] + i: json.loads(line) for i, line in enumerate(history["content"])}
        if sent.get("complete"):
            run.exit_code = sent["exitcode"]
        self._answer({})

    def _answer(self, content: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass
