"""Whatever happens to W&B, the run goes on and its record is complete: real servers, real processes."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from support.processes import wandb_service
from support.recording import CONFIG, record, rows_of, settings, steps, tear_down
from support.wandb_run import recorded_run, recorded_runs
from support.wandb_server import KEY, WandbServer

from mtl.runs.tracker import Tracker


@pytest.mark.parametrize("listening", [False, True], ids=["closed port", "no answer"])
def test_a_server_that_cannot_be_reached_costs_a_bounded_time_and_one_warning(
    listening: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: Callable[[], list[str]]
) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if listening:
            silent.listen()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_INIT_TIMEOUT", "2")
        start = time.monotonic()
        assert steps(record(tmp_path)) == [1, 2, 3, 4]
        tear_down()
        assert time.monotonic() - start < 20
    run = next(run for run in recorded_runs(tmp_path) if run.folder.name.startswith("offline-"))
    assert len(run.rows) == 4 and run.exit_code == 0
    assert len(warnings()) == 1 and "offline" in warnings()[0] and "\n" not in warnings()[0]


def test_a_key_that_the_server_refuses_is_recorded_offline_with_one_warning(
    online: WandbServer, tmp_path: Path, warnings: Callable[[], list[str]]
) -> None:
    online.faults = {"/graphql": 401}
    start = time.monotonic()
    record(tmp_path)
    tear_down()
    assert time.monotonic() - start < 20
    assert [len(run.rows) for run in recorded_runs(tmp_path) if run.folder.name.startswith("offline-")] == [4]
    assert len(warnings()) == 1 and "offline" in warnings()[0]


def test_starting_and_finishing_wait_for_a_minute_at_most(online: WandbServer, tmp_path: Path) -> None:
    import wandb

    with Tracker(tmp_path, settings(), CONFIG):
        assert 0 < wandb.run.settings.init_timeout <= 60
        assert 0 < wandb.run.settings.finish_timeout <= 60, "0 is W&B's own default, and waits for ever"


def test_a_server_that_fails_for_ever_delays_the_end_by_a_bounded_time(
    online: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: Callable[[], list[str]]
) -> None:
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "1")
    start = time.monotonic()
    rows = record(tmp_path / "first", after_two=lambda: online.faults.update(file_stream=500))
    assert time.monotonic() - start < 20
    assert steps(rows) == [1, 2, 3, 4] and online.refused > 0
    assert len(warnings()) == 1 and f"wandb sync {tmp_path}" in warnings()[0], "how to send what is missing"
    local = recorded_run(tmp_path / "first")
    assert len(local.rows) == 4 and local.exit_code == 0

    online.faults.clear()
    record(tmp_path / "second")
    tear_down()
    assert len(online.runs[recorded_run(tmp_path / "second").id].rows) == 4
    assert len(warnings()) == 1


@pytest.mark.parametrize("fault", [500, 429, 401, 404, "drop", "hang"])
def test_whatever_the_server_does_the_run_goes_on_and_its_end_is_bounded(
    fault: int | str, online: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    warnings: Callable[[], list[str]],
) -> None:  # fmt: skip
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "2")
    online.faults["file_stream"] = fault
    folder, slowest = tmp_path / "run", 0.0
    folder.mkdir()
    with Tracker(folder, settings(), CONFIG) as tracker:
        for step in range(1, 101):
            start = time.monotonic()
            tracker.log("train", step, step / 2, {f"loss/{i}": 1 / step for i in range(30)})
            slowest = max(slowest, time.monotonic() - start)
        end = time.monotonic()
    assert time.monotonic() - end < 15 and slowest < 1
    assert online.refused > 0 and steps(rows_of(folder)) == list(range(1, 101))
    assert len(warnings()) <= 1 and not any("\n" in words for words in warnings())
    tear_down()
    local = recorded_run(folder)
    assert local.column("trainer/step") == list(range(1, 101)), "`wandb sync` can send all of it"


def test_rows_wait_in_memory_while_the_disk_is_full(tmp_path: Path, warnings: Callable[[], list[str]]) -> None:
    """The kernel refuses to write beyond a file size limit, in the middle of a line."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with Tracker(tmp_path, settings("disabled"), CONFIG) as tracker:
            tracker.log("train", 1, 1.0, {"loss/left": 0.5})
            size = (tmp_path / "metrics.jsonl").stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, before[1]))
            for step in (2, 3):
                tracker.log("train", step, 1.0, {"loss/left": 0.5})
                assert (tmp_path / "metrics.jsonl").stat().st_size == size, "no half line"
            with pytest.raises(OSError, match="File too large"):
                tracker.flush()
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            tracker.log("train", 4, 1.0, {"loss/left": 0.5})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert steps(rows_of(tmp_path)) == [1, 2, 3, 4]
    assert len(warnings()) == 1 and "its lines wait in memory" in warnings()[0]


def test_what_wandb_draws_is_not_missing_in_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B draws the delay of a retry from Python's global generator."""
    import random

    import wandb

    start, before = wandb.init, random.getstate()
    monkeypatch.setattr(wandb, "init", lambda **options: (random.random(), start(**options))[1])
    record(tmp_path, "offline", after_two=lambda: monkeypatch.setattr(wandb.run, "log", lambda row: random.random()))
    assert random.getstate() == before


@pytest.fixture
def sockets(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder for the sockets that a killed service leaves; the name of a socket in tmp_path would be too long."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("TMPDIR", folder)
        yield


def test_a_job_outlives_wandbs_service_and_the_next_one_gets_another(
    online: WandbServer, sockets: None, tmp_path: Path, warnings: Callable[[], list[str]]
) -> None:
    def kill() -> None:
        os.kill(wandb_service(os.getpid()), signal.SIGKILL)  # as the kernel does when memory runs out
        time.sleep(0.1)  # a call just after the kill may still go through

    rows = record(tmp_path / "first", after_two=kill)
    assert steps(rows) == [1, 2, 3, 4]
    assert len(warnings()) == 1 and "failed to log" in warnings()[0]

    record(tmp_path / "second")
    tear_down()
    run = online.runs[recorded_run(tmp_path / "second").id]
    assert len(run.rows) == 4 and run.exit_code == 0
    assert len(warnings()) == 1


def test_a_service_that_dies_while_it_is_ended_does_not_end_the_process(
    sockets: None, tmp_path: Path, warnings: Callable[[], list[str]]
) -> None:
    # wandb.teardown() calls sys.exit with the service's exit status if that is not 0.
    folder = tmp_path / "first"
    folder.mkdir()
    with Tracker(folder, settings("offline"), CONFIG) as tracker:
        service = wandb_service(os.getpid())
        os.kill(service, signal.SIGSTOP)  # so that it is still there when it is ended …
        threading.Timer(0.3, os.kill, (service, signal.SIGKILL)).start()  # … and dies then
        tracker.image("conflict/cos", 1, np.zeros((2, 2, 7), np.uint8))  # fails: no image has seven channels
        tracker.log("train", 1, 1.0, {"loss/left": 0.5})
    assert len(rows_of(folder)) == 1 and len(warnings()) == 1
    record(tmp_path / "second", "offline")
    tear_down()
    assert len(recorded_run(tmp_path / "second").rows) == 4
