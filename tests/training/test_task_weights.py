"""The tasks' weights over a run: their means, the task with next to none, and losses outside of a method's domain."""

import json
import logging

import pytest
from support.composing import configuration
from support.weighting_zoo import BUILD, TASKS
from torch import nn

from mtl.runs import checkpoint
from mtl.runs.files import read_metrics
from mtl.runs.terminal import final_report
from mtl.system.signals import Preempted
from mtl.train import train
from mtl.training.task_weights import WeightAverage, WeightWarnings
from mtl.weightings import Equal, Random, Static

TINY = [
    "~backbone", "+backbone._target_=support.networks.Tiny", "data.image_size=8", "data.batch_size=8", "device=cpu",
    "tracker=jsonl", "trainer.limit_val_batches=1", "trainer.examples=0", "trainer.log_every=1", "trainer.val_every=6",
    "scheduler=constant",
]  # fmt: skip


def said(rows, weighting=None, steps=200, tasks=("a", "b", "c")):
    """The warnings of a run whose steps have these (losses, weights)."""
    average, records = WeightAverage(tasks), []
    warnings = WeightWarnings(average, weighting or Equal(), tasks, steps)
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logger = logging.getLogger("mtl.training.task_weights")
    logger.addHandler(handler)
    try:
        for step, (losses, weights) in enumerate(rows, 1):
            average.update(losses, weights)
            warnings.check(step, losses)
    finally:
        logger.removeHandler(handler)
    return records


def constant(losses, weights, steps=200):
    names = "abc"[: len(losses)]
    return [(dict(zip(names, losses, strict=True)), dict(zip(names, weights, strict=True)))] * steps


def test_the_means_are_of_all_steps_that_had_the_task():
    average = WeightAverage(["a", "b", "c"])
    for weights in ({"a": 1.0, "b": -2.0}, {"a": 4.0}, {"a": 1.0, "b": 0.0}):
        average.update(dict.fromkeys(weights, 1.0), weights)
    assert average.by_task() == {"a": {"mean": 2.0, "last": 1.0}, "b": {"mean": -1.0, "last": 0.0}}
    other = WeightAverage(["a", "b", "c"])
    other.load_state_dict(average.state_dict())
    average.update({"a": 1.0}, {"a": 0.0})
    other.update({"a": 1.0}, {"a": 0.0})
    assert other.state_dict() == average.state_dict()


def test_a_task_with_next_to_no_weight_is_named_once_with_all_weights():
    (only,) = said(constant([1.0, 1.0], [2.0, 0.005], 400), tasks=("a", "b"), steps=400)
    assert only == (
        "b hardly trains the backbone: its mean weight over the steps 1 to 100 is 0.005, below 1 % of the tasks' mean; "
        "the mean weights are a 2, b 0.005."
    )


@pytest.mark.parametrize(
    ("rows", "weighting"),
    [
        (constant([1.0, 1.0, 1.0], [1.0, 1.0, 1.0]), None),
        (constant([1.0, 1.0, 1.0], [2.9, 0.05, 0.05]), None),
        (constant([1.0, 1.0, 1e4], [1.0, 1.0, 1e-4]), None),  # a larger unit: log, UW and IMTL-L weigh it so by right
        (constant([1.0, 1.0, 1.0], [1.0, 1.0, 0.0]), Static(["a", "b", "c"], {"c": 0})),
        (constant([1.0, 1.0, 1.0], [1.0, 1.0, 1e-4]), Static(["a", "b", "c"], {"c": 1e-4})),
        (constant([1.0], [0.0]), None),
        ([(dict(a=1.0, b=1.0), dict(a=2.0 * (i % 10 == 0), b=2.0 * (i % 10 > 0))) for i in range(200)], None),
        (constant([1.0, 1.0], [1.0, 0.0], 9) + constant([1.0, 1.0], [1.0, 1.0], 191), None),
    ],
)
def test_and_no_other_is(rows, weighting):
    assert said(rows, weighting) == []


def test_weights_that_are_drawn_alarm_nobody():
    drawn, rows = Random(TASKS, seed=0), []
    for _ in range(200):
        rows.append((dict.fromkeys(TASKS, 1.0), dict(zip(TASKS, drawn.current.tolist(), strict=True))))
        drawn.observe({}, None)
    assert said(rows, drawn) == []


def test_negative_weights_and_short_runs():
    (words,) = said(constant([1.0, 1.0, 1.0], [2.0, 2.0, -1.0]))
    assert words.startswith("c hardly trains the backbone: its mean weight over the steps 1 to 100 is -1, below 1 %")
    assert len(said(constant([1.0, 1.0], [2.0, 0.0], 12), steps=12)) == 1
    assert said(constant([1.0, 1.0], [2.0, 0.0], 4), steps=4) == []


OUTSIDE = {
    "log": ("a loss at or below 0 has no logarithm", [0.0, -1.0]),
    "gls": ("a loss at or below 0 has no logarithm", [0.0, -1.0]),
    "stch": ("a loss at or below 0 has no logarithm", [0.0, -1.0]),
    "famo": ("weighting.min_losses.b=0, takes nearly all the weight", [0.0, -1.0]),
    "uw": ("grows without bound", [0.0, -1.0]),
    "imtl_l": ("grows without bound", [0.0, -1.0]),
    "gradnorm": ("has no training rate", [0.0, -1.0]),
    "dwa": ("says nothing of progress", [-1.0]),
    "equal": ("", []),
    "static": ("", []),
    "random": ("", []),
    "uw_so": ("has no inverse", [0.0, -1.0]),
    "go4align": ("has no inverse", [0.0, -1.0]),
    "tchebycheff": ("", []),
    "pbi": ("", []),
    "cosmos": ("", []),
}


@pytest.mark.parametrize("name", BUILD)
def test_a_loss_that_the_method_is_not_made_for_is_said_once_by_name(name):
    words, outside = OUTSIDE[name]
    good = constant([1.0, 1.0, 1.0], [1.0, 1.0, 1.0], 3)
    assert said(good, BUILD[name](TASKS)) == []
    for loss in (0.0, -1.0):
        found = said(good + constant([1.0, loss, 1.0], [1.0, 1.0, 1.0], 5), BUILD[name](TASKS))
        assert len(found) == (loss in outside)
        assert all(f"step 4: the loss of b is {loss:.3g}, and the weighting" in f and words in f for f in found)


class Negative(nn.CrossEntropyLoss):
    """A loss below zero."""

    def forward(self, prediction, target):
        return super().forward(prediction, target) - 5


def test_a_run_says_it_and_shows_the_weights(tmp_path, caplog):
    options = ["trainer.max_steps=12", "weighting=log", "+weighting.epsilon=1e-6",
               "losses.right._target_=tests.training.test_task_weights.Negative"]  # fmt: skip
    train(configuration(*TINY, *options), tmp_path)
    assert caplog.text.count("step 1: the loss of right is -2.") == caplog.text.count("no logarithm") == 1
    assert "right hardly trains the backbone: its mean weight over the steps 1 to 12 is 0" in caplog.text
    rows = read_metrics(tmp_path, "train")
    weights = json.loads((tmp_path / "summary.json").read_text())["weights"]
    assert weights["right"] == {"mean": 0, "last": 0} and weights["left"]["last"] == rows[-1]["weight/left"]
    assert weights["left"]["mean"] == pytest.approx(sum(row["weight/left"] for row in rows) / 12)
    report = final_report(tmp_path)
    assert "mean weight  last weight" in report and f"{weights['left']['mean']:.4f}" in report


def test_the_means_go_on_after_a_resume(tmp_path):
    options = [*TINY, "trainer.max_steps=8", "strategy=mgda"]
    train(configuration(*options), tmp_path / "whole")
    answers = iter([False, False, False, False, True])
    with pytest.raises(Preempted):
        train(configuration(*options), tmp_path / "parts", lambda: next(answers))
    train(configuration(*options, "resume=auto"), tmp_path / "parts")
    whole, parts = (checkpoint.load(tmp_path / name)["weights"] for name in ("whole", "parts"))
    assert whole == parts and whole["run"]["left"]["steps"] == 8
