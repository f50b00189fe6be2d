"""Whole runs on several ranks, as torchrun would start them."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from mtl.config import load
from mtl.distributed.collectives import get_rank, is_distributed
from mtl.distributed.ranks import rank
from mtl.distributed.sharding import shard
from mtl.engine.engine import Engine
from mtl.errors import ConfigError
from mtl.metrics import classification
from mtl.model import MultiTaskModel
from mtl.runs import figures
from mtl.system.signals import Preempted
from mtl.tasks import Task
from mtl.train import train
from mtl.training.evaluation import evaluate

SHORT = [
    "~backbone", "data.image_size=8", "data.batch_size=7", "+data.pairs_per_digit=1", "trainer.limit_train_batches=4",
    "trainer.max_steps=10", "trainer.val_every=3", "trainer.limit_val_batches=3", "trainer.log_every=2",
    "conflict.every=3", "tracker=jsonl", "device=cpu",
]  # fmt: skip
PLAIN = [*SHORT, "+backbone._target_=support.runs.Plain", "strategy=mgda", "optimizer=sgd", "optimizer.lr=0.1"]
UNFROZEN = ["freeze=[backbone]", "trainer.unfreeze_at=4"]
PARTLY_UNFROZEN = ["freeze=[backbone.1,heads.left]", "trainer.unfreeze_at=4", "backbone._target_=support.runs.Deep"]
BY_LAYERS = ["optimizer=adamw", "optimizer.layer_decay=0.5", "optimizer.weight_decay_exclude_1d=true"]
SHARED = ["head@heads.left=mlp", "head@heads.right=mlp", "share=['2']"]
RESTLESS = [
    *SHORT, "+backbone._target_=support.restless.Backbone", "data._target_=support.restless.AugmentedDigits",
    "strategy=gradvac", "trainer.ema=0.9", "trainer.sync_batchnorm=true",
]  # fmt: skip


class Plain(nn.Sequential):
    """A trunk without randomness or batch statistics, and with a parameter that the features do not depend on."""

    def __init__(self, image_size):
        super().__init__(nn.Flatten(), nn.Linear(image_size**2, 16), nn.Tanh())
        self.unused = nn.Parameter(nn.init.ones_(nn.Linear(1, 1).weight.detach()))


class Deep(nn.Sequential):
    """Two layers, of which one can be frozen alone."""

    def __init__(self, image_size):
        super().__init__(nn.Flatten(), nn.Linear(image_size**2, 16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh())


class Fails(Plain):
    """Raises an error on one rank, or kills its process, after ``after`` training steps."""

    def __init__(self, image_size, rank, how="raise", after=4):
        super().__init__(image_size)
        self.rank, self.how, self.after = rank, how, after

    def forward(self, inputs):
        self.after -= self.training
        if self.after < 0 and get_rank() == self.rank:
            if self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ArithmeticError("this rank has had enough")
        return super().forward(inputs)


class Slow(Plain):
    """Sleeps in each forward pass, so that a signal arrives in time."""

    def forward(self, inputs):
        time.sleep(0.02)
        return super().forward(inputs)


def stopping_at(step, on_rank):
    """A ``stop`` that is true at one step, on one rank only."""
    answers = iter([False] * (step - 1) + [get_rank() == on_rank] + [False] * 100)
    return lambda: next(answers)


def evaluation_with_an_absent_task():
    """Metrics of a sharded model where one rank has two batches and no label of a task, and the other one batch."""
    torch.manual_seed(0)
    model = MultiTaskModel(nn.Linear(4, 3), {task: nn.Linear(3, 2) for task in "ab"})
    if is_distributed():
        for module in (model.backbone, *model.heads.values()):
            shard(module)
    tasks = [Task(task, nn.CrossEntropyLoss(), classification(2)) for task in "ab"]
    inputs, labels = torch.arange(20.0).reshape(5, 4).sin(), torch.tensor([0, 1, 1, 0, 1])
    some = torch.where(torch.arange(5) < 3, labels, -100)
    batches = [(inputs[i : i + 2], {"a": labels[i : i + 2], "b": some[i : i + 2]}) for i in (0, 2, 4)]
    own = batches if not is_distributed() else batches[:2] if get_rank() == 0 else batches[2:]
    return evaluate(Engine(model, tasks), own, torch.device("cpu"))


def mistake(*overrides):
    with pytest.raises(ConfigError) as error:
        train(load([*PLAIN, *overrides]), Path("nowhere"))
    return str(error.value)


def run_all(root):
    """Every run of the tests at once, as starting the processes takes the longest; returns other answers by name."""
    root = Path(root)
    figures.draw_run = lambda folder: None
    train(load(PLAIN), root / "plain")
    train(load([*PLAIN, "trainer.accumulate_grad_batches=2", "trainer.limit_train_batches=8"]), root / "accumulated")
    train(load(RESTLESS), root / "whole")
    with pytest.raises(Preempted):
        train(load(RESTLESS), root / "parts", stopping_at(5, on_rank=1))
    train(load([*RESTLESS, "resume=auto"]), root / "parts")
    sharded = [*PLAIN, "trainer.shard=all", "optimizer=adamw", "trainer.grad_clip_norm=0.1"]
    train(load(sharded), root / "sharded")
    with pytest.raises(Preempted):
        train(load(sharded), root / "sharded parts", stopping_at(5, on_rank=0))
    train(load([*sharded, "resume=auto"]), root / "sharded parts")
    train(load([*sharded, *SHARED]), root / "sharded, with a common part")
    train(load([*PLAIN, "trainer.shard=all"]), root / "sharded, by SGD")
    train(load([*PLAIN, *BY_LAYERS, "trainer.shard=all"]), root / "sharded, by layers")
    train(load([*PLAIN, *UNFROZEN]), root / "unfrozen")
    train(load([*PLAIN, *PARTLY_UNFROZEN]), root / "partly unfrozen")
    with pytest.raises(Preempted):
        train(load([*PLAIN, *PARTLY_UNFROZEN]), root / "unfrozen parts", stopping_at(6, on_rank=0))
    train(load([*PLAIN, *PARTLY_UNFROZEN, "resume=auto"]), root / "unfrozen parts")
    return {
        "evaluation": evaluation_with_an_absent_task(),
        "ranks": (rank(), get_rank()),
        "batch": mistake("data.batch_size=1"),
        "sum": mistake("+losses.left.reduction=sum"),
        "rows": mistake("strategy=moco", "strategy.space=features"),
        "space": mistake("trainer.shard=backbone", "strategy.space=parameters"),
        "ema": mistake("trainer.shard=backbone", "trainer.ema=0.9"),
        "naive": mistake("trainer.shard=all", "strategy=naive"),
        "fused SGD": mistake("trainer.shard=backbone", "+optimizer.fused=true"),
        "fused": mistake("trainer.shard=all", *SHARED, "+optimizer.fused=true"),
        "devices": mistake("trainer.devices=5"),
    }
