"""Real signals to real processes; their runs are compared, bit for bit, with an undisturbed one."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.exactness import assert_same, left_by
from support.processes import Training, until
from support.wandb_run import recorded_runs

from mtl.runs import checkpoint
from mtl.system.signals import EXIT_CODE, StopSignal

RUN = [
    "~backbone", "+backbone._target_=support.restless.Backbone", "data._target_=support.restless.AugmentedDigits",
    "data.image_size=8",
    "+data.pairs_per_digit=1", "data.batch_size=2", "trainer.max_steps=150", "trainer.val_every=30",
    "trainer.checkpoint_every=10", "trainer.limit_val_batches=1", "trainer.log_every=5", "strategy=gradvac",
    "trainer.ema=0.9", "device=cpu",
]  # fmt: skip
SLOWLY = ["+backbone.fault_at=1", "+backbone.sleep=0.02"]  # so that a signal comes in time on any machine


def status(folder):
    return json.loads((folder / "status.json").read_text())["status"]


def lines(folder):
    file = folder / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


def started(folder, *arguments, rows=0, **environment):
    """A run in ``folder / "run"`` that has written at least ``rows`` rows."""
    training = Training(folder, *RUN, "hydra.run.dir=run", *arguments, **environment)
    training.start()
    if rows:
        until(lambda: lines(folder / "run") >= rows or not training.is_alive())
    return training


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert started(folder, "tracker=jsonl").wait() == 0
    return left_by(folder / "run")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_the_run_which_goes_on_as_if_there_had_been_none(tmp_path, undisturbed, number):
    folder = tmp_path / "run"
    training = started(tmp_path, *SLOWLY, rows=8, WANDB_MODE="offline")
    assert training.send(number)
    assert training.wait() == EXIT_CODE == 143, training.log.read_text()
    assert status(folder) == "preempted" and "error" not in (folder / "status.json").read_text()
    step = checkpoint.load(folder)["step"]
    assert 0 < step < 150 and f"stopped at step {step} as asked" in training.log.read_text()

    again = Training(tmp_path, f"resume={folder}", WANDB_MODE="offline")  # nothing else: the run knows its overrides
    again.start()
    assert again.wait() == 0, again.log.read_text()
    assert status(folder) == "finished"
    assert_same(undisturbed, left_by(folder))
    first, second = until(
        lambda: all(run.exit_code is not None for run in recorded_runs(folder)) and recorded_runs(folder)
    )
    assert (first.exit_code, second.exit_code) == (143, 0) and first.id == second.id


def test_the_second_signal_ends_the_process_at_once(tmp_path, undisturbed):
    folder = tmp_path / "run"
    slow = ["+backbone.sleep=30", "+backbone.fault_at=20", "tracker=jsonl"]
    training = started(tmp_path, *slow)
    until(lambda: "FAULT" in (training.log.read_text() if training.log.exists() else ""))
    begin = time.monotonic()
    training.send(signal.SIGTERM)
    until(lambda: "once more stops at once" in training.log.read_text())
    training.send(signal.SIGTERM)
    assert training.wait() == EXIT_CODE and time.monotonic() - begin < 10
    assert status(folder) == "running" and checkpoint.load(folder)["step"] < 20


def test_a_whole_process_group_may_get_it(tmp_path, undisturbed):
    """As a scheduler sends it: also to the processes of the data loader and of W&B."""
    training = started(tmp_path, *SLOWLY, "trainer.num_workers=2", rows=8, WANDB_MODE="offline")
    training.send(signal.SIGTERM, group=True)
    assert training.wait() == EXIT_CODE, training.log.read_text()
    assert status(tmp_path / "run") == "preempted"
    assert started(tmp_path, *SLOWLY, "trainer.num_workers=2", "resume=auto", "tracker=jsonl").wait() == 0
    assert_same(undisturbed, left_by(tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_kills_at_random_moments_lose_nothing(tmp_path, undisturbed, seed):
    draw, folder, kills = random.Random(seed), tmp_path / "run", 0
    for _ in range(8):
        training = started(
            tmp_path, *SLOWLY, "resume=auto", "tracker=jsonl", f"trainer.num_workers={draw.choice([0, 2])}"
        )
        training.join(draw.uniform(0.2, 2.5))
        kills += training.send(draw.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]))
        if training.wait() == 0:
            break
    assert kills > 1
    assert started(tmp_path, *SLOWLY, "resume=auto", "tracker=jsonl").wait() == 0
    assert_same(undisturbed, left_by(folder))


@pytest.mark.slow
def test_a_signal_ends_a_sweep_which_goes_on_with_what_is_not_finished(tmp_path):
    short = ["trainer.max_steps=60", "trainer.val_every=20"]

    def sweep(folder, *arguments):
        folder.mkdir(exist_ok=True)
        training = Training(folder, "-m", *RUN, *short, "seed=0,1,2", "tracker=jsonl", *arguments)
        training.start()
        return training

    def jobs(folder):
        (found,) = (folder / "outputs").glob("*/*/*")
        return found

    assert sweep(tmp_path / "whole").wait() == 0
    training = sweep(tmp_path / "parts", *SLOWLY)
    until(lambda: [*(tmp_path / "parts").rglob("1/checkpoints/last.pt")])
    training.send(signal.SIGTERM)
    assert training.wait() == EXIT_CODE, training.log.read_text()
    folder = jobs(tmp_path / "parts")
    assert [status(folder / "0"), status(folder / "1")] == ["finished", "preempted"] and not (folder / "2").exists()
    before = (folder / "0" / "summary.json").stat().st_mtime_ns

    again = sweep(tmp_path / "parts", *SLOWLY, "skip_finished=true")  # the same command line again: the same folder
    assert again.wait() == 0, again.log.read_text()
    assert jobs(tmp_path / "parts") == folder
    assert (folder / "0" / "summary.json").stat().st_mtime_ns == before
    assert "finished, and skipped" in again.log.read_text()
    for job in "012":
        assert_same(left_by(jobs(tmp_path / "whole") / job), left_by(folder / job))

    other = Training(tmp_path / "parts", "-m", *RUN, *short, *SLOWLY, "seed=7,1", "tracker=jsonl", "skip_finished=true",
                     f"hydra.sweep.dir={folder}")  # fmt: skip
    other.start()
    assert other.wait() == 1 and "seed was 0 and is 7" in other.log.read_text()
    assert status(folder / "0") == "finished", "a mistake leaves the run that is there alone"


@pytest.mark.slow
@pytest.mark.parametrize("whole_group", [True, False])
def test_a_sweep_over_processes_is_stopped_as_well(tmp_path, whole_group):
    """In a process that was not forked: after a fork, joblib's workers wait for each other at the end."""
    paths = f"{Path(__file__).parents[2]}{os.pathsep}{Path(__file__).parents[1]}"
    joblib = [sys.executable, "-m", "mtl.train", "-m", *RUN, "seed=0,1,2,3", "tracker=jsonl", "hydra/launcher=joblib",
              "hydra.launcher.n_jobs=2"]  # fmt: skip
    given = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": paths}}
    sweep = subprocess.Popen(joblib, start_new_session=True, **given)
    until(lambda: len([*tmp_path.rglob("checkpoints/last.pt")]) >= 2)
    (os.killpg if whole_group else os.kill)(sweep.pid, signal.SIGTERM)
    assert sweep.wait(60) == EXIT_CODE
    with pytest.raises(ProcessLookupError):
        until(lambda: os.killpg(sweep.pid, 0), seconds=20)  # no process is left
    assert "finished" not in {status(path.parent) for path in tmp_path.rglob("status.json")}
    subprocess.run([*joblib, "skip_finished=true"], check=True, timeout=200, **given)
    folders = sorted(path.parent for path in tmp_path.rglob("status.json"))
    assert [folder.name for folder in folders] == ["0", "1", "2", "3"]
    assert {status(folder) for folder in folders} == {"finished"}


def test_two_processes_do_not_write_into_one_folder(tmp_path):
    first = started(tmp_path, "tracker=jsonl", "trainer.max_steps=100000", rows=5)
    second = started(tmp_path, "tracker=jsonl", "trainer.max_steps=100000", "resume=auto")
    assert second.wait() == 1 and "is being written by another process" in second.log.read_text()
    assert status(tmp_path / "run") == "running"
    first.send(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL


def test_the_handlers_from_before_come_back():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    with StopSignal() as stop:
        assert not stop()
        signal.raise_signal(signal.SIGUSR1)
        assert stop()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == before
