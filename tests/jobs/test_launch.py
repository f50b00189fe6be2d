"""trainer.devices and torchrun with real processes: signals, ranks that fail or are killed, and mistakes."""

import json
import os
import signal
import subprocess
import sys

import pytest
from support.processes import TESTS, Training, until
from support.runs import SHORT

from mtl.runs import checkpoint

LONG = ["trainer.max_steps=4000", "trainer.max_epochs=null", "trainer.checkpoint_every=1000", "trainer.val_every=1000"]


def started(folder, backbone, *arguments):
    training = Training(folder, *SHORT, f"+backbone._target_=support.runs.{backbone}", *arguments, "hydra.run.dir=run")
    training.start()
    return training


def status(folder):
    return json.loads((folder / "run" / "status.json").read_text())


def rows(folder):
    file = folder / "run" / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


@pytest.mark.slow
def test_a_signal_to_the_launcher_checkpoints_once_and_the_run_goes_on(tmp_path):
    training = started(tmp_path, "Slow", *LONG, "trainer.devices=2")
    until(lambda: rows(tmp_path) >= 3 or not training.is_alive(), seconds=120)
    training.send(signal.SIGTERM)
    assert training.wait() == 143, training.log.read_text()
    assert status(tmp_path)["status"] == "preempted"
    step = checkpoint.load(tmp_path / "run")["step"]
    log = (tmp_path / "run" / "train.log").read_text()
    assert log.count(f"stopped at step {step} as asked") == 2  # once by each rank; by rank 1 as a warning
    again = Training(tmp_path, "resume=run", f"trainer.max_steps={step + 3}")
    again.start()
    assert again.wait() == 0, again.log.read_text()
    assert checkpoint.load(tmp_path / "run")["step"] == step + 3


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("raise", "rank 1: ArithmeticError: this rank has had enough"),
        pytest.param("kill", "rank 1: Signal 9", marks=pytest.mark.slow),
    ],
)
def test_a_rank_that_fails_ends_all_and_says_why(tmp_path, how, words):
    arguments = ["+backbone.rank=1", f"+backbone.how={how}", "trainer.devices=2"]
    training = started(tmp_path, "Fails", *arguments, *LONG)
    assert training.wait() == 1
    assert words in status(tmp_path)["error"]
    log = (tmp_path / "run" / "train.log").read_text()
    assert words in log
    assert "[rank 1] ArithmeticError" in log if how == "raise" else True


@pytest.mark.slow
def test_a_mistake_is_one_sentence(tmp_path):
    training = started(tmp_path, "Plain", "trainer.devices=2", "data.batch_size=1")
    assert training.wait() == 1
    assert status(tmp_path)["error"].startswith("trainer.devices=2 must be at most 1")
    assert "Traceback" not in training.log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["raise", "kill", None])
def test_torchrun(tmp_path, how):
    backbone = ["+backbone._target_=support.runs.Plain"]
    if how:
        backbone = ["+backbone._target_=support.runs.Fails", "+backbone.rank=1", f"+backbone.how={how}"]
    agent = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--local-addr=localhost", "-m", "mtl.train"]
    answer = subprocess.run(
        [sys.executable, *agent, *SHORT, *backbone, "name=here", "trainer.max_steps=20"], cwd=tmp_path, timeout=300,
        env=os.environ | {"PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"}, capture_output=True, text=True,
    )  # fmt: skip
    (folder,) = tmp_path.glob("outputs/here/*/*")
    content = json.loads((folder / "status.json").read_text())
    if how is None:
        assert answer.returncode == 0, answer.stderr
        assert content["status"] == "finished"
        assert (folder / ".hydra").is_dir() and (folder / "run.png").is_file()
        return
    assert answer.returncode != 0
    assert content["status"] == "failed"
    if how == "raise":
        assert content["error"] == "rank 1: ArithmeticError: this rank has had enough"
    assert ("rank 1" if how == "raise" else "SIGKILL") in answer.stderr  # torchrun itself reports a kill


@pytest.mark.slow
def test_a_rank_that_fails_ends_the_sweep_of_torchrun(tmp_path):
    """It must not start the next job while the other rank waits for it in this one."""
    agent = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--local-addr=localhost", "-m", "mtl.train", "-m"]
    backbone = ["+backbone._target_=support.runs.Fails", "+backbone.rank=1", "+backbone.after=4,100"]
    answer = subprocess.run(
        [sys.executable, *agent, *SHORT, *backbone, "name=here"], cwd=tmp_path, timeout=300,
        env=os.environ | {"PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"}, capture_output=True, text=True,
    )  # fmt: skip
    assert answer.returncode != 0
    (only,) = tmp_path.glob("outputs/here/*/*/*/status.json")
    assert json.loads(only.read_text())["error"] == "rank 1: ArithmeticError: this rank has had enough"
