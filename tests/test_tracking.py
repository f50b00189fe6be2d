"""What a Tracker leaves behind: metrics.jsonl, and the same in W&B, whatever W&B does.

No part of wandb is replaced: an offline run is read back from its file, an online one is served on 127.0.0.1.
"""

from __future__ import annotations

import json
import logging
import math
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from wandb_run import recorded_run, recorded_runs
from wandb_server import KEY, WandbServer

from mtl.config import HERE, load
from mtl.tracking import Tracker, write_json, write_status

NAN, INF = float("nan"), float("inf")
CONFIG = {"seed": 0, "optimizer": {"lr": 0.001}, "names": ["left", "right"], "resume": None}


# ------------------------------------------------------------------------------------------------ set-up


def isolate(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """No W&B settings, key or cache of the person at this machine."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        patch.delenv(name)
    patch.setenv("WANDB_CACHE_DIR", str(folder / "cache"))
    patch.setenv("WANDB_CONFIG_DIR", str(folder / "config"))
    patch.setenv("WANDB_ERROR_REPORTING", "false")
    patch.setenv("NETRC", str(folder / "netrc"))


def tear_down() -> None:
    """End wandb's helper: it writes the last of the files, and keeps the environment it was started in."""
    if "wandb" in sys.modules:
        import wandb

        wandb.teardown()


@pytest.fixture(scope="module", autouse=True)
def isolated_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        isolate(patch, tmp_path_factory.mktemp("home"))
        yield


@pytest.fixture(autouse=True)
def isolated(isolated_module: None) -> Iterator[None]:
    with pytest.MonkeyPatch.context():
        before = dict(os.environ)
        yield
        tear_down()
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with WandbServer() as server:
        yield server


@pytest.fixture
def online(server: WandbServer, monkeypatch: pytest.MonkeyPatch) -> WandbServer:
    """A server that the environment leads to, with a key."""
    for name, value in server.variables.items():
        monkeypatch.setenv(name, value)
    return server


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.INFO, logger="mtl")
    return lambda: [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING and record.name.startswith("mtl")
    ]


def settings(mode: str | None = None, **others: Any) -> SimpleNamespace:
    """What conf/tracker holds."""
    given = {"mode": mode, "project": "mtl", "entity": None, "group": None, "run_name": "a-run", "tags": []}
    return SimpleNamespace(**given | others)


def record(
    folder: Path,
    mode: str | None = None,
    config: dict[str, Any] | None = None,
    after_two: Callable[[], Any] = int,
) -> list[dict[str, Any]]:
    """A run of four rows, with something done after the second; what its metrics.jsonl says."""
    folder.mkdir(exist_ok=True)
    with Tracker(folder, settings(mode), config or CONFIG) as tracker:
        for step in range(1, 5):
            tracker.log("train", step, step / 2, {"loss/left": 1 / step})
            if step == 2:
                after_two()
    return rows_of(folder)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl, read as strictly as JSON is."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=not_json) for line in lines]


def not_json(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def steps(rows: list[dict[str, Any]]) -> list[int]:
    return [row["step"] for row in rows]


# ------------------------------------------------------------------------------ the record, and its mirror


@pytest.fixture(scope="module")
def mirrored(isolated_module: None, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """An offline run with one of everything."""
    folder = tmp_path_factory.mktemp("mirrored")
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    told = settings("offline", group="a-sweep", run_name="strategy=naive,seed=1", tags=["digits", "t" * 70])
    with Tracker(folder, told, CONFIG) as tracker:
        tracker.log("train", 1, 0.25, {"loss/left": 0.5, "conflict/cos/left~right": -0.1, "lr": 1e-3})
        tracker.log("train", 2, 0.5, {"loss/left": NAN, "conflict/cos/left~right": INF, "lr": -INF})
        tracker.log("val", 2, 0.5, {"loss/left": 0.75, "left/accuracy": 0.5})
        tracker.image("conflict/cos", 3, pixels)
        tracker.log("train", 3, 0.75, {"loss/left": 0.25})
        tracker.log("test", 2, 0.5, {"loss/left": 0.625})
        tracker.summarise({"steps": 3, "test": {"loss/left": 0.625}, "best": NAN, "each": [INF, 1.0]})
    tear_down()
    return SimpleNamespace(folder=folder, run=recorded_run(folder), rows=rows_of(folder), pixels=pixels)


def test_every_row_of_the_record_is_in_wandb_under_its_split(mirrored: SimpleNamespace) -> None:
    assert [(row["split"], row["step"], row["epoch"]) for row in mirrored.rows] == [
        ("train", 1, 0.25), ("train", 2, 0.5), ("val", 2, 0.5), ("train", 3, 0.75), ("test", 2, 0.5),
    ]  # fmt: skip
    scalars = [row for row in mirrored.run.rows if "conflict/cos.path" not in row]
    for row, mirror in zip(mirrored.rows, scalars, strict=True):
        metrics = {name: value for name, value in row.items() if name not in ("step", "epoch", "split")}
        shown = {name: value for name, value in mirror.items() if not name.startswith("_")}
        finite = {name: value if math.isfinite(value) else None for name, value in shown.items()}
        named = {f"{row['split']}/{name}": value for name, value in metrics.items()}
        assert finite == {**named, "trainer/step": row["step"], "trainer/epoch": row["epoch"]}


def test_the_step_is_the_x_axis_of_everything(mirrored: SimpleNamespace) -> None:
    assert mirrored.run.axes == {"*": "trainer/step"}
    assert mirrored.run.column("trainer/step") == [1, 2, 2, 3, 3, 2]


def test_the_heat_map_is_an_image_at_its_step_with_its_own_colours(mirrored: SimpleNamespace) -> None:
    from matplotlib.image import imread

    (row,) = [row for row in mirrored.run.rows if "conflict/cos.path" in row]
    assert (row["conflict/cos._type"], row["trainer/step"]) == ("image-file", 3)
    png = mirrored.run.folder / "files" / row["conflict/cos.path"]
    assert np.array_equal(np.rint(imread(png) * 255).astype(np.uint8), mirrored.pixels)


def test_what_tells_the_runs_of_a_sweep_apart_is_stored(mirrored: SimpleNamespace) -> None:
    run = mirrored.run
    assert (run.project, run.group, run.job_type) == ("mtl", "a-sweep", "train")
    assert run.name == "strategy=naive,seed=1"
    assert run.tags == ["digits", "t" * 64], "a longer tag is an error in W&B"


def test_the_configuration_is_stored(mirrored: SimpleNamespace) -> None:
    assert {key: mirrored.run.config[key] for key in CONFIG} == CONFIG


def test_what_json_has_no_number_for_is_null_in_the_record_and_itself_in_wandb(
    mirrored: SimpleNamespace,
) -> None:
    row = mirrored.rows[1]
    assert [row["loss/left"], row["conflict/cos/left~right"], row["lr"]] == [None, None, None]
    assert repr(mirrored.run.column("train/loss/left")) == "[0.5, nan, 0.25]"
    assert mirrored.run.column("train/conflict/cos/left~right") == [-0.1, INF]


def test_the_summary_is_strict_json_and_in_wandb(mirrored: SimpleNamespace) -> None:
    summary = json.loads((mirrored.folder / "summary.json").read_text(), parse_constant=not_json)
    assert summary["best"] is None and summary["each"] == [None, 1.0]
    assert mirrored.run.summary["steps"] == 3 and mirrored.run.summary["test"] == {"loss/left": 0.625}


def test_training_shows_a_heat_map_at_each_evaluation_and_stores_the_resolved_config(tmp_path: Path) -> None:
    from mtl.train import train

    few = ["trainer.max_steps=4", "trainer.val_every=2", "trainer.log_every=1", "trainer.limit_val_batches=1"]
    cfg = load(["tracker.mode=offline", "conflict.every=1", "device=cpu", *few])
    train(cfg, tmp_path)
    tear_down()
    run = recorded_run(tmp_path)
    images = [row for row in run.rows if any(name.endswith(".path") for name in row)]
    assert [row["trainer/step"] for row in images] == [2, 4]
    assert all(any(name.startswith("train/conflict/cos.") for name in row) for row in images)
    assert len(run.column("train/conflict/cos/left~right")) == 4
    assert set(run.axes.values()) == {"trainer/step"} and run.exit_code == 0
    assert run.config["trainer"]["max_steps"] == 4
    assert "${" not in json.dumps({key: run.config[key] for key in cfg})


def test_status_says_how_a_run_stands_and_the_first_line_of_its_error(tmp_path: Path) -> None:
    write_status(tmp_path, "running")
    assert json.loads((tmp_path / "status.json").read_text())["status"] == "running"
    write_status(tmp_path, "failed", "\nthe first\nthe second")
    told = json.loads((tmp_path / "status.json").read_text())
    assert (told["status"], told["error"]) == ("failed", "the first")
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"], "no temporary file stays"


def test_a_json_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    write_json(tmp_path / "it.json", {"old": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "it.json", {"new": object()})
    assert json.loads((tmp_path / "it.json").read_text()) == {"old": 1}


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
    """A command that records a small run in ``folder`` and does ``inside`` amid it."""
    return [
        sys.executable, "-c",
        f"""
import logging, sys
logging.basicConfig(level=logging.INFO, format="%(message)s")
from pathlib import Path
from types import SimpleNamespace
from mtl.tracking import Tracker
settings = SimpleNamespace(mode={mode!r}, project="mtl", entity=None, group=None, run_name="r", tags=[])
with Tracker(Path({str(folder)!r}), settings, {{}}) as tracker:
    tracker.log("train", 1, 1.0, {{"loss/left": 0.5}})
    {inside or "pass"}
assert ("wandb" in sys.modules) == ({mode!r} != "disabled"), "wandb is imported where it is not wanted"
""",
    ]  # fmt: skip


def bare_environment(home: Path) -> dict[str, str]:
    """An environment in which nothing is set but a home folder."""
    others = ("WANDB_", "XDG_", "NETRC")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    return kept | {"HOME": str(home), "PYTHONPATH": str(HERE.parent), "PYTHONDONTWRITEBYTECODE": "1"}


def test_the_choice_jsonl_does_not_even_import_wandb(tmp_path: Path) -> None:
    mode = load(["tracker=jsonl"]).tracker.mode
    subprocess.run(script(tmp_path, mode), check=True, env=bare_environment(tmp_path), timeout=60)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_everything_stays_in_the_run_folder_and_the_console_quiet(tmp_path: Path) -> None:
    home, folder, work = tmp_path / "home", tmp_path / "run", tmp_path / "work"
    for path in (home, folder, work):
        path.mkdir()
    # A table is staged outside of the run's own files, in the home folder if nothing is done about it.
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
    except OSError:  # how Linux says that the other side is gone
        pass
    finally:
        if time.monotonic() >= limit:
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        os.close(terminal)
    assert status == 0, f"it waits, or fails: {shown.decode()}"
    assert recorded_run(folder).exit_code == 0


# ------------------------------------------------------------------------------------------ trouble


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


@pytest.fixture
def sockets(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder for the sockets that a killed helper leaves; tmp_path is too long for the name of one."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("TMPDIR", folder)
        yield


def test_a_job_outlives_wandbs_helper_and_the_next_one_gets_another(
    online: WandbServer, sockets: None, tmp_path: Path, warnings: Callable[[], list[str]]
) -> None:
    def kill() -> None:
        os.kill(helper_id(), signal.SIGKILL)  # as the kernel does when memory runs out
        time.sleep(0.1)  # a call just after the kill may still go through

    rows = record(tmp_path / "first", after_two=kill)
    assert steps(rows) == [1, 2, 3, 4]
    assert len(warnings()) == 1 and "failed to log" in warnings()[0]

    record(tmp_path / "second")
    tear_down()
    run = online.runs[recorded_run(tmp_path / "second").id]
    assert len(run.rows) == 4 and run.exit_code == 0
    assert len(warnings()) == 1


def test_a_helper_that_dies_while_it_is_ended_does_not_end_the_process(
    sockets: None, tmp_path: Path, warnings: Callable[[], list[str]]
) -> None:
    # Where the helper's exit status is not 0, wandb.teardown() calls sys.exit with it.
    folder = tmp_path / "first"
    folder.mkdir()
    with Tracker(folder, settings("offline"), CONFIG) as tracker:
        helper = helper_id()
        os.kill(helper, signal.SIGSTOP)  # so that it still is there to be ended …
        threading.Timer(0.3, os.kill, (helper, signal.SIGKILL)).start()  # … and dies then
        tracker.image("conflict/cos", 1, np.zeros((2, 2, 7), np.uint8))  # fails: no image has seven channels
        tracker.log("train", 1, 1.0, {"loss/left": 0.5})
    assert len(rows_of(folder)) == 1 and len(warnings()) == 1
    record(tmp_path / "second", "offline")
    tear_down()
    assert len(recorded_run(tmp_path / "second").rows) == 4


def helper_id() -> int:
    """The process id of this process's wandb-core, found by its parent and its name."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, others = stat.read_text().partition("(")[2].rpartition(") ")
        except OSError:  # it ended in the meantime
            continue
        state, parent, *_ = others.split()
        if name == "wandb-core" and parent == str(os.getpid()) and state != "Z":  # Z: killed by an earlier test
            return int(stat.parent.name)
    raise AssertionError("wandb-core does not run")
