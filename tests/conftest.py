"""What many tests need: a tiny run in this process, and real ones in another."""

import gc
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

# Two cores are shared by two test processes; and no test may reach for a W&B account or a hub.
os.environ.update(OMP_NUM_THREADS="1", WANDB_MODE="offline", WANDB_SILENT="true", HF_HUB_OFFLINE="1")

import torch

torch.set_num_threads(1)
gc.disable()  # while everything is imported: that makes a million objects and no garbage


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


def pytest_unconfigure():
    gc.unfreeze()


TINY = [
    "trainer.max_steps=4",
    "trainer.val_every=2",
    "trainer.limit_val_batches=2",
    "data.batch_size=8",
    "tracker=jsonl",
]


@pytest.fixture
def train_tiny(tmp_path):
    """Train a few steps in this process; returns the run's folder. ``stop_after``: asked to stop at that step."""
    from support.composing import configuration

    from mtl.system.signals import Preempted
    from mtl.train import train

    def run(*overrides, folder="run", stop_after=None):
        if stop_after is None:
            train(configuration(*TINY, *overrides), tmp_path / folder)
        else:
            answers = iter([False] * (stop_after - 1) + [True])
            with pytest.raises(Preempted):
                train(configuration(*TINY, *overrides), tmp_path / folder, lambda: next(answers))
        return tmp_path / folder

    return run


@pytest.fixture
def command(tmp_path):
    """Run one of our commands as a person would, in an empty folder."""

    def run(*arguments, timeout=240, **environment):
        return subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


@pytest.fixture
def forked(tmp_path):
    """The same of a process that has torch loaded: for all but the tests of how a command starts."""
    from support.processes import Command

    def run(module, *arguments, timeout=240, **environment):
        process = Command(tmp_path, module, *arguments, out="stdout.txt", err="stderr.txt", **environment)
        for file in (process.out, process.err):
            file.unlink(missing_ok=True)
        process.start()
        code = process.wait(timeout)
        return SimpleNamespace(returncode=code, stdout=process.out.read_text(), stderr=process.err.read_text())

    return run


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch):
    """A run in this process leaves an empty run.png: drawing it is more than half of a tiny run's time."""
    monkeypatch.setattr("mtl.runs.figures.draw_run", lambda folder: (folder / "run.png").touch())


@pytest.fixture(autouse=True)
def leave_nothing_behind():
    """Global switches that a run sets are set back."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    yield
    torch.use_deterministic_algorithms(False)
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None
    logging.getLogger().setLevel(logging.WARNING)
