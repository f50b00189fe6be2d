"""What a training step would fail on, or do otherwise than meant, is said before the first one."""

import logging

import pytest
import torch
from support.ranks import run_ranks
from torch import nn

from mtl.config import load
from mtl.config.build import build
from mtl.distributed.collectives import all_reduce, get_rank, get_world_size
from mtl.engine.engine import Engine
from mtl.errors import ConfigError
from mtl.model import MultiTaskModel
from mtl.strategies import Detached
from mtl.tasks import Task
from mtl.weightings import Equal
from tests.config.test_loss_means import dice, supervised_contrastive


class Pooled(nn.Module):
    """A trunk without batch statistics."""

    def __init__(self, in_channels):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 6, 3, 2)

    def forward(self, x):
        return self.conv(x).mean((-2, -1))


class Contrastive(nn.Module):
    def forward(self, prediction, target):
        return supervised_contrastive(prediction, target)


class Dice(nn.Module):
    def forward(self, prediction, target):
        """Of [B, 10]."""
        p, t = prediction.softmax(1), nn.functional.one_hot(target, 10).to(prediction)
        return 1 - (2 * (p * t).sum() + 1) / ((p + t).sum() + 1)


class OwnCrossEntropy(nn.CrossEntropyLoss):
    """A mean, that has to be tried."""


class Noisy(nn.CrossEntropyLoss):
    def forward(self, prediction, target):
        return super().forward(nn.functional.dropout(prediction), target)


SMALL = [
    "device=cpu", "tracker=jsonl", "data.image_size=16", "+data.pairs_per_digit=1", "trainer.max_steps=2",
    "~backbone", "+backbone._target_=tests.config.test_rehearsal.Pooled",
]  # fmt: skip
HERE = "losses.left._target_=tests.config.test_rehearsal."
NORMED = (
    "+heads.left={_target_: torch.nn.Sequential, _args_: [{_target_: torch.nn.Linear, in_features: 6, "
    "out_features: 10}, {_target_: torch.nn.BatchNorm1d, num_features: 10}]}"
)


def message(*overrides):
    try:
        build(load([*SMALL, *overrides]))
    except ConfigError as error:
        return str(error)
    return None


def in_two_processes():
    logging.getLogger("mtl.config.rehearsal").addHandler(said := Said())
    messages = {name: message(HERE + name) for name in ("Contrastive", "Dice", "OwnCrossEntropy", "Noisy")}
    messages["BatchNorm"] = message("~heads.left", NORMED, "data.batch_size=2")
    messages["SyncBatchNorm"] = message("~heads.left", NORMED, "data.batch_size=2", "trainer.sync_batchnorm=true")
    return messages, said.warnings


class Said(logging.Handler):
    def __init__(self):
        super().__init__()
        self.warnings = []

    def emit(self, record):
        if record.levelno >= logging.WARNING:
            self.warnings.append(record.getMessage())


def test_two_processes_refuse_what_is_no_mean():
    for messages, warnings in run_ranks(2, in_two_processes):
        for name in ("Contrastive", "Dice"):
            assert messages[name].startswith(f"losses.left ({name}) is not the mean over its labels: with several proc")
        assert messages["OwnCrossEntropy"] is messages["Noisy"] is messages["SyncBatchNorm"] is None
        assert messages["BatchNorm"].startswith(
            "data.batch_size=2 leaves one sample for each of 2 processes, and heads.left.1 (BatchNorm1d) needs more"
        )
        (warning,) = warnings
        assert warning.startswith("losses.left (Noisy): it draws random numbers, so that nobody has checked")


def gradient_of(loss):
    """Of one step on a batch, of which each process has a part."""
    torch.manual_seed(0)
    model = MultiTaskModel(nn.Linear(4, 6), {"a": nn.Linear(6, 5)})
    inputs, targets = torch.randn(9, 4), torch.randint(5, (9,))
    own = slice(9 * get_rank() // get_world_size(), 9 * (get_rank() + 1) // get_world_size())
    engine = Engine(model, [Task("a", loss)])
    Detached(Equal()).run(engine, inputs[own], {"a": targets[own]})
    return all_reduce(model.backbone.weight.grad.clone())


def gradients():
    return [gradient_of(loss) for loss in (supervised_contrastive, dice, nn.CrossEntropyLoss(torch.arange(1.0, 6.0)))]


def test_what_is_refused_is_another_training_and_what_is_not_is_the_same():
    """In two real processes, without the rehearsal."""
    for one, two, same in zip(gradients(), run_ranks(2, gradients)[0], (False, False, True), strict=True):
        assert ((one - two).norm() < 1e-5 * one.norm()) == same


@pytest.mark.parametrize(
    ("overrides", "levels"),
    [
        ([HERE + "Dice"], ["INFO"]),
        ([HERE + "Dice", "trainer.accumulate_grad_batches=2"], ["WARNING", "INFO"]),
        ([HERE + "Dice", "trainer.accumulate_grad_batches=2", "trainer.accumulate=exact"], ["INFO"]),
        ([HERE + "OwnCrossEntropy", "trainer.accumulate_grad_batches=2"], []),
        ([HERE + "Noisy"], []),
        ([], []),
    ],
)
def test_one_process_trains_on_any_loss_and_says_what_it_sees(caplog, overrides, levels):
    with caplog.at_level(logging.INFO, "mtl.config.rehearsal"):
        assert message(*overrides) is None
    records = [record for record in caplog.records if record.name == "mtl.config.rehearsal"]
    assert [record.levelname for record in records] == levels
    assert all(text in records[-1].getMessage() for text in ("losses.left (Dice)", "batches of 64") if levels)


def test_losses_that_are_known_are_not_tried(monkeypatch):
    monkeypatch.setattr("mtl.config.rehearsal._predict", lambda *_: pytest.fail("the model ran"))
    assert message() is None


ONE = "needs more than one value per channel in training; use a larger data.batch_size"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.batch_size=1"], "data.batch_size=1 leaves one sample a batch, and heads.left.1 (BatchNorm1d) " + ONE),
        (["data.batch_size=1", "strategy=mgda", "strategy.space=parameters"], "heads.left.1 (BatchNorm1d) " + ONE),
        (["data.batch_size=1", "trainer.accumulate_grad_batches=2"], "leaves one sample a batch"),
        (["data.batch_size=1", "trainer.accumulate_grad_batches=2", "trainer.accumulate=exact"], None),
        (["data.batch_size=2"], None),
    ],
)
def test_statistics_of_one_sample_are_named(overrides, words):
    found = message("~heads.left", NORMED, *overrides)
    assert found is None if words is None else words in found


def test_a_trunk_that_sees_one_sample_at_a_time_is_named():
    """The heads see both pieces together, and the trunk one after the other."""
    trunk = ["backbone._target_=torch.nn.Sequential", (
        "+backbone._args_=[{_target_: torch.nn.AdaptiveAvgPool2d, output_size: 1}, {_target_: torch.nn.Flatten}, "
        "{_target_: torch.nn.BatchNorm1d, num_features: 1}]"
    )]  # fmt: skip
    pieces = ["trainer.accumulate_grad_batches=2", "trainer.accumulate=exact", *trunk]
    found = message("data.batch_size=1", *pieces)
    assert found.startswith("data.batch_size=1 leaves one sample for each of 2 pieces (trainer.accumulate=exact), and ")
    assert "backbone.2 (BatchNorm1d)" in found
    assert message("data.batch_size=2", *pieces) is None


def test_one_sample_is_enough_for_statistics_over_positions():
    assert message("data.batch_size=1") is None
