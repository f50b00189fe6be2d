"""Losses and gradients that are not finite: named before anything learns from them, and stopped or skipped."""

import json

import pytest
import torch
from support.composing import configuration
from support.exactness import differing, same
from torch import nn

from mtl.runs import checkpoint
from mtl.runs.files import read_metrics
from mtl.train import train
from mtl.training.nonfinite import GradientNorm

RUN = [
    "~backbone", "+backbone._target_=support.restless.Backbone", "data._target_=support.restless.AugmentedDigits",
    "data.image_size=8",
    "data.batch_size=6", "+data.pairs_per_digit=1", "trainer.max_steps=6", "trainer.val_every=6", "trainer.keep=9",
    "trainer.limit_val_batches=1", "trainer.log_every=1", "trainer.checkpoint_every=1", "tracker=jsonl",
    "trainer.ema=0.9", "device=cpu",
]  # fmt: skip
LEARNED = ("model", "ema", "losses", "optimizer", "strategy")


def broken(kind, first, last=None):
    loss = f"{{_target_: support.restless.BreakingLoss, kind: '{kind}', first: {first}, last: {last or first}}}"
    return f"++losses.left={loss}"


def run(folder, *overrides):
    train(configuration(*RUN, *overrides), folder)
    return folder


@pytest.mark.parametrize("strategy", ["naive", "detached", "mgda", "moco"])
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("nan", "step 3: the loss of left is nan."),
        ("inf", "step 3: the loss of left is inf."),
        ("gradient", "step 3: the gradient of left with respect to the features is not finite."),
    ],
)
def test_a_run_stops_before_the_update_and_names_task_and_step(tmp_path, strategy, kind, words):
    with pytest.raises(FloatingPointError) as caught:
        run(tmp_path, f"strategy={strategy}", broken(kind, 3))
    assert str(caught.value) == f"{words} Nothing was updated; trainer.on_nan=skip leaves such steps out."
    assert checkpoint.load(tmp_path)["step"] == 2
    assert [row["step"] for row in read_metrics(tmp_path, "train")] == [1, 2]


def test_a_gradient_that_breaks_in_the_trunk_names_the_parameter(tmp_path):
    with pytest.raises(
        FloatingPointError, match=r"step 3: the gradient of backbone.layers.0.weight is not finite, though"
    ):
        run(tmp_path, "backbone._target_=support.restless.BreakingBackbone")


def test_inputs_that_are_the_cause_are_named(tmp_path, monkeypatch):
    from support.restless import Augmented

    read = Augmented.__getitem__

    def spoilt(self, index):
        image, targets = read(self, index)
        return (image * float("nan") if index == 17 and len(self) > 1000 else image), targets

    monkeypatch.setattr(Augmented, "__getitem__", spoilt)
    words = r"the loss of left is nan and the loss of right is nan \(the inputs of the samples 17 are not finite"
    with pytest.raises(FloatingPointError, match=words):
        run(tmp_path, "trainer.overfit_batches=5", "trainer.max_steps=20")


@pytest.mark.parametrize(
    "choice",
    ["strategy=naive", "strategy=detached", "strategy=gradvac", "strategy=moco", "strategy=db_mtl", "strategy=pcgrad",
     "weighting=dwa", "weighting=famo", "weighting=gradnorm", "weighting=uw", "weighting=random", "weighting=stch"],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["nan", pytest.param("gradient", marks=pytest.mark.slow)])
def test_a_skipped_step_teaches_nothing(tmp_path, choice, kind):
    folder = run(tmp_path, choice, broken(kind, 3), "trainer.on_nan=skip")
    steps = {i: checkpoint.load(folder / "checkpoints" / f"step-{i:08d}.pt") for i in range(1, 7)}
    for content in steps.values():  # the schedule is a function of the step, and goes on
        content["optimizer"] = content["optimizer"]["state"]
    for part in LEARNED:
        assert differing(steps[2][part], steps[3][part]) == [], part
    assert not same(steps[3]["model"], steps[4]["model"]), "negative control"
    assert all(torch.isfinite(v).all() for v in steps[6]["model"].values())
    assert steps[3]["skips"] == {"total": 1, "in_a_row": 1, "overflow": 0} and steps[4]["skips"] == {
        "total": 1,
        "in_a_row": 0,
        "overflow": 0,
    }
    assert [row["step"] for row in read_metrics(folder, "train")] == [1, 2, 4, 5, 6]
    assert json.loads((folder / "summary.json").read_text())["skipped"]["steps"] == 1


def test_no_more_than_so_many_are_skipped_in_a_row(tmp_path):
    with pytest.raises(
        FloatingPointError, match=r"step 5: the loss of left is nan; trainer.max_skips=2 steps in a row"
    ):
        run(tmp_path / "a", broken("nan", 3, 5), "trainer.on_nan=skip", "trainer.max_skips=2")
    run(tmp_path / "b", broken("nan", 3, 5), "trainer.on_nan=skip", "trainer.max_skips=3")


@pytest.mark.parametrize("size", [1e25, 1e-30])
def test_gradients_whose_squares_float32_cannot_hold_are_finite(size):
    parameter = nn.Parameter(torch.zeros(4))
    parameter.grad = torch.full((4,), size)
    assert GradientNorm([parameter]).total().item() == pytest.approx(2 * size, rel=1e-6)
    parameter.grad[1] = float("inf")
    assert not torch.isfinite(GradientNorm([parameter]).total())
