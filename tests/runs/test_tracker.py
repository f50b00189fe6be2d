"""Each job has one W&B run with its exit code, in the right mode; and a tracker in its own process."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.recording import CONFIG, record, rows_of, settings, steps, tear_down
from support.wandb_run import recorded_run, recorded_runs
from support.wandb_server import KEY, WandbServer

from mtl.config import CONF, load
from mtl.runs.record import truncate_to_step
from mtl.runs.tracker import Tracker

# ------------------------------------------------------------------------- one run a job, with its exit code


def test_each_job_of_a_process_has_its_own_run_also_after_one_that_failed(tmp_path: Path) -> None:
    def fail(error: BaseException) -> Callable[[], None]:
        def fail() -> None:
            raise error

        return fail

    endings = [int, fail(ValueError("a")), fail(KeyboardInterrupt()), fail(SystemExit(0)), int]
    for i, ending in enumerate(endings):
        before = dict(os.environ)
        try:
            record(tmp_path / str(i), "offline", {"seed": i}, after_two=ending)
        except BaseException as error:
            assert i in (1, 2, 3), error
        assert dict(os.environ) == before, "W&B's variables leak into the next job"
    tear_down()
    runs = [recorded_run(tmp_path / str(i)) for i in range(len(endings))]
    assert len({run.id for run in runs}) == len(runs)
    assert [run.config["seed"] for run in runs] == [0, 1, 2, 3, 4]
    assert [len(run.rows) for run in runs] == [4, 2, 2, 2, 4]
    assert [run.exit_code for run in runs] == [0, 1, 1, 1, 0]


def test_a_run_that_something_else_left_open_is_not_taken_for_this_one(online: WandbServer, tmp_path: Path) -> None:
    import wandb

    (tmp_path / "other").mkdir()
    other = wandb.init(mode="offline", dir=str(tmp_path / "other"), config={"mine": True})
    record(tmp_path / "run")
    tear_down()
    assert [recorded_run(tmp_path / "other").id] == [other.id]
    (run,) = online.runs.values()
    assert run.config["seed"] == 0 and "mine" not in run.config and len(run.rows) == 4


@pytest.mark.parametrize("mode", ["offline", None], ids=["offline", "online"])
def test_a_resumed_run_is_the_same_run_again(
    mode: str | None, online: WandbServer, tmp_path: Path, warnings: Callable[[], list[str]]
) -> None:
    with Tracker(tmp_path, settings(mode), CONFIG) as tracker:
        first = tracker.wandb_id
        for step in (1, 2):
            tracker.log("train", step, step / 2, {"loss/left": 1 / step})
    truncate_to_step(tmp_path / "metrics.jsonl", 1)
    with Tracker(tmp_path, settings(mode), CONFIG, first) as tracker:
        assert tracker.wandb_id == first
        for step in (2, 3):
            tracker.log("train", step, step / 2, {"loss/left": 1 / step})
    tear_down()
    assert steps(rows_of(tmp_path)) == [1, 2, 3] and warnings() == []
    assert {run.id for run in recorded_runs(tmp_path)} == {first} and len(recorded_runs(tmp_path)) == 2
    if mode is None:
        (run,) = online.runs.values()
        assert run.column("trainer/step") == [1, 2, 2, 3], "the rows after the checkpoint come once more, as they were"


def test_a_run_without_wandb_keeps_the_id_for_later(tmp_path: Path) -> None:
    with Tracker(tmp_path, settings("disabled"), CONFIG, "abc123") as tracker:
        assert tracker.wandb_id == "abc123"


def test_the_rows_after_a_checkpoint_are_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    truncate_to_step(file, 3)
    assert not file.exists()
    rows = [(1, "train"), (2, "train"), (2, "val"), (3, "train"), (2, "test")]
    text = "".join(json.dumps({"step": step, "split": split}) + "\n" for step, split in rows)
    file.write_text(text + '{"step": 4, "spl')
    truncate_to_step(file, 2)
    assert [(row["step"], row["split"]) for row in rows_of(tmp_path)] == rows[:3]


# ------------------------------------------------------------------------------------ which mode, and no key


@pytest.mark.parametrize(
    ("config", "environment", "key", "expected"),
    [
        ("offline", "disabled", True, "offline"),
        ("disabled", "offline", True, "none"),
        ("online", "offline", True, "online"),
        ("online", "disabled", True, "online"),
        (None, "offline", True, "offline"),
        (None, "dryrun", False, "offline"),
        (None, "disabled", True, "none"),
        (None, "", True, "online"),
        (None, None, True, "online"),
        (None, None, False, "offline"),
    ],
)
def test_the_mode_is_the_configs_else_the_environments_else_online_with_a_key(
    config: str | None, environment: str | None, key: bool, expected: str, server: WandbServer,
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, warnings: Callable[[], list[str]],
) -> None:  # fmt: skip
    monkeypatch.setenv("WANDB_BASE_URL", server.variables["WANDB_BASE_URL"])
    if key:
        monkeypatch.setenv("WANDB_API_KEY", KEY)
    if environment is not None:
        monkeypatch.setenv("WANDB_MODE", environment)
    assert steps(record(tmp_path, config)) == [1, 2, 3, 4]
    tear_down()
    local = recorded_runs(tmp_path)
    assert len(server.runs) == (expected == "online")
    assert len(local) == (expected != "none")
    assert all(run.folder.name.startswith("offline-") == (expected == "offline") for run in local)
    assert warnings() == []


def test_an_online_run_arrives_whole(online: WandbServer, tmp_path: Path, warnings: Callable[[], list[str]]) -> None:
    told = settings(group="a-sweep", tags=["digits"])
    with Tracker(tmp_path, told, CONFIG) as tracker:
        for step in (1, 2, 3):
            tracker.log("train", step, step / 2, {"loss/left": 1 / step})
    tear_down()
    (run,) = online.runs.values()
    created = run.created
    assert (created["project"], created["groupName"], created["jobType"]) == ("mtl", "a-sweep", "train")
    assert (created["displayName"], created["tags"]) == ("a-run", ["digits"])
    assert run.column("train/loss/left") == [1, 1 / 2, 1 / 3] and run.column("trainer/step") == [1, 2, 3]
    assert {key: run.config[key] for key in CONFIG} == CONFIG
    assert run.exit_code == 0 and warnings() == []


@pytest.mark.parametrize("key", [None, "short"])
def test_online_without_a_key_that_could_be_one_is_recorded_offline_with_one_warning(
    key: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: Callable[[], list[str]]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    if key is not None:
        monkeypatch.setenv("WANDB_API_KEY", key)
    record(tmp_path)
    tear_down()
    assert len(recorded_run(tmp_path).rows) == 4
    assert len(warnings()) == 1 and "offline" in warnings()[0]


def test_a_mode_that_does_not_exist_costs_the_mirror_but_not_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: Callable[[], list[str]]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "onlin")
    assert steps(record(tmp_path)) == [1, 2, 3, 4]
    assert len(warnings()) == 1 and "onlin" in warnings()[0] and "\n" not in warnings()[0]


def test_an_installation_of_wandb_that_cannot_be_imported_costs_the_mirror_but_not_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: Callable[[], list[str]]
) -> None:
    tear_down()
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert steps(record(tmp_path)) == [1, 2, 3, 4]
    assert len(warnings()) == 1
    monkeypatch.undo()


# --------------------------------------------------------------------------------- a process of its own


def script(folder: Path, mode: str | None, inside: str = "") -> list[str]:
    """A command that records a small run in ``folder`` and runs the code ``inside`` in the middle of it."""
    return [
        sys.executable, "-c",
        f"""
import logging, sys
logging.basicConfig(level=logging.INFO, format="%(message)s")
from pathlib import Path
from types import SimpleNamespace
from mtl.runs.tracker import Tracker
settings = SimpleNamespace(mode={mode!r}, project="mtl", entity=None, group=None, run_name="r", tags=[])
with Tracker(Path({str(folder)!r}), settings, {{}}) as tracker:
    tracker.log("train", 1, 1.0, {{"loss/left": 0.5}})
    {inside or "pass"}
assert ("wandb" in sys.modules) == ({mode!r} != "disabled"), "wandb is imported where it is not wanted"
""",
    ]  # fmt: skip


def bare_environment(home: Path) -> dict[str, str]:
    """An environment without settings of W&B, and with another home folder."""
    others = ("WANDB_", "XDG_", "NETRC")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    return kept | {"HOME": str(home), "PYTHONPATH": str(CONF.parent), "PYTHONDONTWRITEBYTECODE": "1"}


def test_the_choice_jsonl_does_not_even_import_wandb(tmp_path: Path) -> None:
    mode = load(["tracker=jsonl"]).tracker.mode
    subprocess.run(script(tmp_path, mode), check=True, env=bare_environment(tmp_path), timeout=60)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_everything_stays_in_the_run_folder_and_the_console_quiet(tmp_path: Path) -> None:
    home, folder, work = tmp_path / "home", tmp_path / "run", tmp_path / "work"
    for path in (home, folder, work):
        path.mkdir()
    # W&B stages a table outside of the run's own files: in the home folder by default.
    table = 'import wandb; wandb.run.log({"table": wandb.Table(columns=["a"], data=[[1]])})'
    done = subprocess.run(
        script(folder, None, table), env=bare_environment(home), cwd=work,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and "offline" in lines[0], done.stderr
    assert [*home.rglob("*"), *work.rglob("*")] == []
    assert (len(rows_of(folder)), recorded_run(folder).exit_code) == (1, 0)
    assert list((folder / "wandb" / "artifacts" / "staging").iterdir()), "the table is not with the run"


@pytest.mark.parametrize("mode", [None, "online"])
def test_no_key_at_a_terminal_is_no_prompt(mode: str | None, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, script(folder, mode), bare_environment(tmp_path) | {"TERM": "xterm"})
    shown, limit = b"", time.monotonic() + 30
    try:
        while time.monotonic() < limit:
            if select.select([terminal], [], [], 1)[0]:
                shown += os.read(terminal, 4096)
    except OSError:  # how Linux reports that the other end is closed
        pass
    finally:
        if time.monotonic() >= limit:
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        os.close(terminal)
    assert status == 0, f"it waits, or fails: {shown.decode()}"
    assert recorded_run(folder).exit_code == 0
