"""The monitored metric: its direction, and evaluations at which it has no value."""

import json
from types import SimpleNamespace

import pytest
import torch
from support.composing import configuration
from torch import nn
from torchmetrics import MeanAbsoluteError, MeanSquaredError, Metric
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.wrappers import Running

from mtl.data.digits import Digits
from mtl.errors import ConfigError
from mtl.metrics import MaskedMean, attributes, depth, normals, segmentation
from mtl.runs.files import read_metrics
from mtl.runs.terminal import final_report
from mtl.tasks import Task
from mtl.train import train
from mtl.training.monitor import Monitor
from mtl.training.schedule import step_plateau

TINY = [
    "~backbone", "+backbone._target_=support.networks.Tiny", "data.image_size=8", "data.batch_size=8", "device=cpu",
    "tracker=jsonl", "trainer.limit_val_batches=1", "trainer.examples=0", "trainer.val_every=1", "scheduler=constant",
]  # fmt: skip


class Undecided(Metric):
    """A metric that does not say which direction is better."""

    def update(self, prediction, target):
        pass

    def compute(self):
        return torch.tensor(0.0)


def monitor(metric, mode=None, name="a/it"):
    return Monitor.from_config(
        SimpleNamespace(monitor=name, mode=mode, baselines=None), [Task("a", nn.MSELoss(), {"it": metric})]
    )


@pytest.mark.parametrize(
    ("metric", "mode"),
    [
        (MulticlassAccuracy(3), "max"), (MeanSquaredError(), "min"), (Running(MulticlassAccuracy(3), 2), "max"),
        (Running(MeanAbsoluteError(), 2), "min"), (segmentation(3)["miou"], "max"), (depth()["rel_err"], "min"),
        (normals()["within_30"], "max"), (normals()["angle_median"], "min"), (attributes()["f1"], "max"),
    ],
    ids=str,
)  # fmt: skip
def test_the_direction_is_the_metrics_own(metric, mode):
    other = {"max": "min", "min": "max"}[mode]
    assert monitor(metric).mode == monitor(metric, mode).mode == mode
    with pytest.raises(ConfigError, match=rf"^trainer.mode={other}: .*; use trainer.mode={mode}, or leave it null\.$"):
        monitor(metric, other)
    better, worse = (2.0, 1.0) if mode == "max" else (1.0, 2.0)
    assert monitor(metric).improves(better, worse) and not monitor(metric).improves(worse, better)
    assert not monitor(metric).improves(-0.0, 0.0) and not monitor(metric).improves(1.0, 1.0), "the first of two equals"


@pytest.mark.parametrize("metric", [Undecided(), 1 - MulticlassAccuracy(3)], ids=["own", "composed"])
def test_a_metric_without_a_direction_needs_one(metric):
    assert monitor(metric, "max").mode == "max" and monitor(metric, "min").mode == "min"
    with pytest.raises(ConfigError, match=r"does not say whether higher is better; give trainer.mode=min or trainer"):
        monitor(metric)


def test_losses_are_minimised_and_only_val_decides():
    accuracy = MulticlassAccuracy(3)
    for name in ("loss/total", "loss/a", "val/loss/a"):
        assert monitor(accuracy, None, name) == Monitor(name.removeprefix("val/"), "min")
    with pytest.raises(ConfigError, match=r"use trainer\.mode=min"):
        monitor(accuracy, "max", "loss/total")
    for name in ("test/a/it", "train/a/it"):
        with pytest.raises(
            ConfigError, match=r"the val split decides, as in trainer.monitor=a/it; there are loss/total"
        ):
            monitor(accuracy, None, name)
    val = Monitor.from_config(
        SimpleNamespace(monitor="val/it", mode=None), [Task("val", nn.MSELoss(), {"it": accuracy})]
    )
    assert val.name == "val/it", "a task may be called val"


@pytest.mark.parametrize("nothing", [{}, {"a/it": float("nan")}, {"a/it": float("inf")}, {"a/it": float("-inf")}])
def test_what_is_no_value(nothing):
    assert Monitor("a/it").value(nothing) is None and Monitor("a/it").value({"a/it": 0.5}) == 0.5


def test_a_plateau_does_not_count_an_evaluation_without_a_value():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
    for evaluation, value in enumerate([1.0, None, None, None, 0.5], 1):
        step_plateau(scheduler, evaluation, value)
    assert optimizer.param_groups[0]["lr"] == 1.0
    step_plateau(scheduler, 6, 0.5)
    assert optimizer.param_groups[0]["lr"] == 0.5


class Blind(MaskedMean):
    """1, 2, 3, … at every evaluation, lower is better; NaN at those of ``blind``."""

    def __init__(self, blind):
        super().__init__(lambda p, t: t.float(), lambda t: torch.ones_like(t, dtype=torch.bool))
        self.blind, self.evaluations = blind, -1  # the build computes it once

    def update(self, prediction, target):
        super().update(target, target)

    def compute(self):
        self.evaluations += 1
        value = self.evaluations if self.evaluations not in self.blind else float("nan")
        return torch.tensor(float(value))


class BlindDigits(Digits):
    """Digits with a metric that has no value at some evaluations."""

    def __init__(self, blind=(), **arguments):
        super().__init__(**arguments)
        self.blind = tuple(blind)

    def metrics(self, target):
        return super().metrics(target) | {"blind": Blind(self.blind)}


def blind_run(folder, blind, *more):
    options = ["data._target_=tests.training.test_monitor.BlindDigits", f"+data.blind={blind}",
               "trainer.monitor=left/blind", "trainer.max_steps=8"]  # fmt: skip
    train(configuration(*TINY, *options, *more), folder)
    return json.loads((folder / "summary.json").read_text())


def test_an_evaluation_without_a_value_uses_up_no_patience_and_is_said_once(tmp_path, caplog):
    summary = blind_run(tmp_path, [1, 3, 4, 5], "trainer.patience=2")
    # evaluation 2 is the best; 6 and 7 are the two worse ones, and 3, 4 and 5 count for nothing
    assert summary["best"]["step"] == 2 and summary["best"]["monitor"] == 2.0 and summary["steps"] == 7
    assert caplog.text.count("trainer.monitor=left/blind is nan at the evaluation of step 1") == 1
    assert caplog.text.count("counts for nothing") == 1 and "no evaluation had a value" not in caplog.text


def test_a_metric_that_never_has_a_value(tmp_path, caplog):
    summary = blind_run(tmp_path, list(range(1, 9)), "trainer.patience=2")
    assert summary["steps"] == 8 and summary["best"]["step"] is None and summary["best"]["monitor"] is None
    assert "no evaluation had a value of trainer.monitor=left/blind" in caplog.text
    assert read_metrics(tmp_path, "test")[0]["step"] == 8
    assert "last model (step 8, no best one)" in final_report(tmp_path)


def test_the_best_model_has_the_highest_accuracy(tmp_path, caplog):
    train(configuration(*TINY, "trainer.max_steps=6", "trainer.monitor=left/accuracy"), tmp_path)
    values = [row["left/accuracy"] for row in read_metrics(tmp_path, "val")]
    best = json.loads((tmp_path / "summary.json").read_text())["best"]
    assert best["monitor"] == max(values) > min(values) and best["step"] == 1 + values.index(max(values))
    assert "counts for nothing" not in caplog.text and "no label" not in caplog.text
