"""mtl-report --watch: a real server on loopback, and a real process."""

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.report_runs import accuracies, write_run

from mtl.report import watch as watching
from mtl.report.command import serve
from mtl.report.runs import ReportError
from mtl.report.watch import Watched, watch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server of two runs, one of which goes on; it may make the page again at once."""
    monkeypatch.setattr(watching, "REST", 0)
    write_run(tmp_path / "0", test=accuracies(0.5, 0.5))
    write_run(tmp_path / "1", "mgda", status="running", rows=2, trainer={"max_steps": 100})
    found = watch([tmp_path], "runs", [], "127.0.0.1", 0)
    thread = threading.Thread(target=found.serve_forever, args=(0.05,))
    thread.start()
    yield found
    found.shutdown()
    thread.join()
    found.server_close()


def get(server, path, host=None):
    address = f"http://127.0.0.1:{server.server_port}{path}"
    request = urllib.request.Request(address, headers={"Host": host} if host else {})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return answer.read().decode()


def test_what_is_running_and_how_far(server):
    state = json.loads(get(server, "/state"))
    assert state["version"] == 1
    (done, going) = state["runs"]
    assert done["status"] == "finished"
    assert (going["name"], going["status"], going["step"], going["total"]) == ("1", "running", 20, 100)


def test_the_content_is_made_again_after_a_change_and_only_then(server, tmp_path):
    first = json.loads(get(server, "/content"))["content"]
    assert first["version"] == json.loads(get(server, "/content"))["content"]["version"] == 1
    (tmp_path / "1" / "status.json").write_text('{"status": "failed", "error": "ValueError: no"}')
    assert json.loads(get(server, "/state"))["version"] == 2
    second = json.loads(get(server, "/content"))
    assert second["content"]["version"] == 2 and second["figures"]
    runs = {run["folder"]: run for run in second["content"]["comparisons"][0]["runs"]}
    assert runs["1"]["error"] == "ValueError: no" and runs["0"]["status"] == "finished"
    write_run(tmp_path / "2", seed=1, status="running", rows=1)
    assert len(json.loads(get(server, "/content"))["content"]["comparisons"][0]["runs"]) == 3


def test_a_key_is_tuned_as_soon_as_two_runs_differ_in_it(tmp_path, monkeypatch):
    monkeypatch.setattr(watching, "REST", 0)
    write_run(tmp_path / "0", optimizer={"lr": 0.1})
    watched = Watched([tmp_path], "runs", ["optimizer.lr"])
    (first,) = watched.content()[0]["comparisons"]
    assert [note for note in first["notes"] if "--tune optimizer.lr: no two runs differ in it" in note]
    write_run(tmp_path / "1", optimizer={"lr": 0.2})
    (second,) = watched.content()[0]["comparisons"]
    assert len(second["rows"]) == 1 and not [note for note in second["notes"] if "--tune" in note]


def test_the_page_is_not_made_again_at_once_while_runs_need_the_processor(server, tmp_path, monkeypatch):
    monkeypatch.setattr(watching, "REST", 1e6)
    (tmp_path / "1" / "status.json").write_text('{"status": "failed"}')
    assert json.loads(get(server, "/content"))["content"]["version"] == 2
    (tmp_path / "1" / "status.json").write_text('{"status": "running"}')
    assert json.loads(get(server, "/state"))["version"] == 2
    assert json.loads(get(server, "/content"))["content"]["version"] == 2


@pytest.mark.parametrize(
    ("path", "host", "status"),
    [("/0/status.json", None, 404), ("/../0/status.json", None, 404), ("/state", "elsewhere.example:80", 403)],
    ids=["file", "parent", "another name"],
)
def test_nothing_else_is_answered(server, path, host, status):
    with pytest.raises(urllib.error.HTTPError) as error:
        get(server, path, host)
    assert error.value.code == status
    assert server.server_address[0] == "127.0.0.1"


def test_a_folder_that_is_gone_is_said(server, tmp_path):
    for run in ("0", "1"):
        for file in (tmp_path / run).iterdir():
            file.unlink()
    with pytest.raises(urllib.error.HTTPError) as error:
        get(server, "/state")
    assert error.value.code == 503 and "holds no run" in error.value.read().decode()


def test_a_port_in_use_is_one_sentence(tmp_path):
    write_run(tmp_path / "0", test=accuracies(0.5, 0.5))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ReportError, match=f"--port {port} cannot be opened on 127.0.0.1") as error:
            watch([tmp_path], "runs", [], "127.0.0.1", port)
    assert "\n" not in str(error.value)


def test_the_command_serves_until_it_is_interrupted_and_writes_no_file(tmp_path):
    write_run(tmp_path / "0", status="running", rows=2)
    command = [sys.executable, "-m", "mtl.report.command", str(tmp_path), "--watch", "--port", "0"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background begins without it
    )  # fmt: skip
    try:
        address = re.match(r"(http://127\.0\.0\.1:\d+/) shows", process.stdout.readline())[1]
        with urllib.request.urlopen(address, timeout=20) as answer:
            assert "connect-src 'self'" in answer.read().decode()
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 0 and errors == ""
    assert [path.name for path in tmp_path.iterdir()] == ["0"]


def test_it_shows_no_grouping():
    arguments = SimpleNamespace(out=None, wandb=False, groups=2)
    with pytest.raises(ReportError, match=r"--watch shows no grouping: leave out --groups"):
        serve(arguments)
