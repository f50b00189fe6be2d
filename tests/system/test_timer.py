from unittest.mock import patch

import pytest
import torch

from mtl.config import load
from mtl.config.build import build
from mtl.runs.files import read_metrics
from mtl.runs.tracker import make_tracker
from mtl.system.timer import StepTimer
from mtl.training.loop import fit


class Time:
    """A clock that goes on only when it is told to."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def time():
    time = Time()
    with patch("mtl.system.timer.time", time):
        yield time


def test_a_reading_is_the_mean_of_all_steps_since_the_last_one(time):
    clock = StepTimer(8, torch.device("cpu"), peak=0)
    for reading in (1, 2):
        for seconds in (1, 2, 6):
            with clock.loading():
                time.now += 0.5
            with clock.step():
                time.now += seconds * reading
            with clock.paused():
                time.now += 1000
        row = clock.read()
        assert row["time/step"] == pytest.approx(3 * reading + 0.5)
        assert row["time/data"] == pytest.approx(0.5)
        assert row["samples_per_second"] == pytest.approx(8 / (3 * reading + 0.5))


def test_a_run_logs_the_mean_over_the_steps_and_no_evaluation(time, tmp_path):
    cfg = load(
        ["~backbone", "+backbone._target_=support.networks.Tiny", "data.image_size=8", "tracker=jsonl",
         "trainer.max_steps=6", "trainer.log_every=3", "trainer.val_every=2", "trainer.limit_val_batches=1"]
    )  # fmt: skip
    parts, state = build(cfg)
    run, evaluated = state.strategy.run, state.tasks[0].metrics["accuracy"].compute

    def slow_step(*arguments, **options):
        time.now += 10 ** (state.step % 3)  # the steps 1, 10, 100, 1, 10, 100
        return run(*arguments, **options)

    def slow_evaluation():
        time.now += 1e6
        return evaluated()

    slow = patch.object(state.strategy, "run", slow_step)
    evaluation = patch.object(state.tasks[0].metrics["accuracy"], "compute", slow_evaluation)
    with slow, evaluation, make_tracker(tmp_path, cfg.tracker, {}, None) as tracker:
        fit(state, parts, cfg, tracker)
    rows = {row["step"]: row["time/step"] for row in read_metrics(tmp_path, "train")}
    assert rows == pytest.approx({1: 1, 3: 110 / 2, 6: 111 / 3})
