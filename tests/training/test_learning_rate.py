"""Schedules: relative to each group's own rate, against timm's and against closed forms; and what is refused."""

import math

import pytest
import timm.scheduler
import torch
from support.composing import configuration
from torch import nn

from mtl.config import load
from mtl.config.build import _make_scheduler, build
from mtl.errors import ConfigError
from mtl.runs import checkpoint
from mtl.runs.files import read_metrics
from mtl.train import train
from mtl.training.learning_rate import WarmupCosine
from mtl.training.schedule import Plan, step_scheduler

SMALL = [
    "~backbone", "+backbone._target_=support.networks.Tiny", "data.image_size=8", "data.batch_size=8", "device=cpu",
    "tracker=jsonl", "trainer.limit_val_batches=1", "trainer.examples=0", "trainer.log_every=1",
]  # fmt: skip


def optimizer(*rates):
    return torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates])


def rates_of(scheduler, steps):
    rates = []
    for step in range(1, steps + 1):
        rates.append([group["lr"] for group in scheduler.optimizer.param_groups])
        scheduler.optimizer.step()
        step_scheduler(scheduler, step)
    return rates


@pytest.mark.parametrize("steps", [5, 20, 21, 600])
def test_one_rate_has_timms_schedule_to_the_last_bit(steps):
    """The defaults are those that timm's absolute rates, 1e-5 and 1e-6, were for a rate of 2e-3."""
    theirs = timm.scheduler.CosineLRScheduler(
        optimizer(2e-3), steps, warmup_t=20, warmup_lr_init=1e-5, lr_min=1e-6, t_in_epochs=False
    )
    assert rates_of(WarmupCosine(optimizer(2e-3), steps, 20, 0.005, 0.0005), steps) == rates_of(theirs, steps)


def test_every_group_has_fractions_of_its_own_rate():
    rows = rates_of(WarmupCosine(optimizer(1.0, 1e-6, 0.0), 40, 10, 0.1, 0.01), 40)
    for step, (one, small, none) in enumerate(rows):
        expected = 0.1 + 0.09 * step if step < 10 else 0.01 + 0.99 * (1 + math.cos(math.pi * step / 40)) / 2
        assert one == pytest.approx(expected) and small == pytest.approx(1e-6 * expected) and none == 0.0
    assert max(row[1] for row in rows) <= 1e-6


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "lamb"])
def test_a_rate_of_zero_leaves_the_backbone_as_it_is(tmp_path, name):
    options = [*SMALL, "trainer.max_steps=5", "optimizer.groups.backbone.lr=0", f"optimizer={name}"]
    train(configuration(*options), tmp_path)
    start = build(configuration(*options))[1].model.state_dict()
    end = checkpoint.load(tmp_path)["model"]
    moved = {key for key, value in start.items() if not torch.equal(end[key], value)}
    assert moved and not any(key.startswith("backbone.") for key in moved)
    row = read_metrics(tmp_path, "train")[-1]
    assert row["lr/backbone"] == 0 and row["lr/heads"] == row["lr"] > 0


def scheduler(target, *options):
    return ["scheduler=constant", "~scheduler.factor", f"scheduler._target_={target}", *options]


TORCH, TIMM = "torch.optim.lr_scheduler", "timm.scheduler"
FROZEN, SLOW, LOW = "optimizer.groups.backbone.lr=0", "optimizer.groups.backbone.lr=1e-4", "optimizer.lr=1e-6"


def made(*options):
    """The scheduler of a run with these options, on two parameters in place of a model; and the optimizer."""
    cfg = load([*SMALL, "trainer.max_steps=30", *options])
    rates = {part: cfg.optimizer.groups[part].lr for part in ("backbone", "heads")}
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": rate, "name": part} for part, rate in rates.items()]
    data = type("Data", (), {"train": range(1000), "batch_size": 8})
    own = torch.optim.AdamW(groups)
    return _make_scheduler(cfg, own, Plan.from_data(data, cfg.trainer, cfg.conflict), "min"), own


def built(*options):
    return build(load([*SMALL, "trainer.max_steps=30", *options]))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([LOW, *scheduler(f"{TIMM}.CosineLRScheduler", "+scheduler.warmup_t=5", "+scheduler.warmup_lr_init=1e-5")],
         "scheduler.warmup_lr_init=1e-05 is absolute, and CosineLRScheduler raises the learning rate of the backbone "),
        ([FROZEN, *scheduler(f"{TIMM}.TanhLRScheduler", "+scheduler.lr_min=1e-5")], "from its own, 0, to "),
        ([FROZEN, *scheduler(f"{TIMM}.PolyLRScheduler", "+scheduler.lr_min=1e-5")], "from its own, 0, to "),
        ([FROZEN, *scheduler(f"{TIMM}.StepLRScheduler", "+scheduler.decay_t=5", "+scheduler.warmup_t=5",
                             "+scheduler.warmup_lr_init=1e-5")], "scheduler.warmup_lr_init=1e-05 is absolute"),
        ([FROZEN, *scheduler(f"{TORCH}.CosineAnnealingLR", "+scheduler.eta_min=1e-5")], "scheduler.eta_min=1e-05 is"),
        ([SLOW, *scheduler(f"{TORCH}.OneCycleLR", "+scheduler.max_lr=0.01")],
         "write one for each: scheduler.max_lr=[0.0005, 0.01]."),
        ([FROZEN, *scheduler(f"{TORCH}.OneCycleLR", "+scheduler.max_lr=0.01")], "scheduler.max_lr=[0, 0.01]."),
        ([SLOW, *scheduler(f"{TORCH}.CyclicLR", "+scheduler.base_lr=1e-4", "+scheduler.max_lr=1e-3")],
         "scheduler.max_lr=0.001 is one rate for backbone and heads"),
        (scheduler(f"{TORCH}.OneCycleLR", "+scheduler.max_lr=0.01", "+scheduler.total_steps=9"), "scheduler: step 10 "),
        (["scheduler=plateau", "+scheduler.mode=max"], "scheduler.mode=max contradicts trainer.monitor=loss/total"),
    ],
)  # fmt: skip
def test_absolute_rates_that_are_not_what_was_asked_for_are_refused(options, words):
    with pytest.raises(ConfigError) as caught:
        made(*options)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        [], [FROZEN], [SLOW], [LOW], ["scheduler=plateau", SLOW], ["scheduler=step", FROZEN],
        [SLOW, *scheduler(f"{TORCH}.OneCycleLR", "+scheduler.max_lr=[0.001,0.01]")],
        scheduler(f"{TORCH}.CyclicLR", "+scheduler.base_lr=1e-4", "+scheduler.max_lr=1e-3"),
        [SLOW, *scheduler(f"{TORCH}.LinearLR")], [SLOW, *scheduler(f"{TORCH}.ExponentialLR", "+scheduler.gamma=1.1")],
        [SLOW, *scheduler(f"{TORCH}.CosineAnnealingLR", "+scheduler.eta_min=1e-7")],
        [FROZEN, *scheduler(f"{TIMM}.CosineLRScheduler", "+scheduler.warmup_t=5")],
    ],
)  # fmt: skip
def test_and_others_pass_without_a_word(options, caplog):
    made(*options)
    assert not caplog.records


def test_a_floor_that_groups_share_is_said(caplog):
    made(SLOW, *scheduler(f"{TORCH}.CosineAnnealingLR", "+scheduler.eta_min=5e-5"))
    assert (
        "scheduler.eta_min=5e-05 is absolute: the ratio between the learning rates of backbone and heads" in caplog.text
    )


@pytest.mark.parametrize(("steps", "said"), [(20, True), (1, True), (21, False), (30, False)])
def test_a_run_within_its_warm_up_says_so(steps, said, caplog):
    made(f"trainer.max_steps={steps}")
    assert ("the run ends within the warm-up of its learning rate" in caplog.text) is said
    caplog.clear()
    made(f"trainer.max_steps={steps}", "trainer.fast_dev_run=true")
    assert not caplog.records


def test_a_learned_weighting_has_no_weight_decay():
    _, state = built("weighting=uw", "optimizer.groups.heads.lr=0.5")
    backbone, heads, weighting = state.optimizer.param_groups
    assert backbone["weight_decay"] == heads["weight_decay"] == 0.01 and weighting["weight_decay"] == 0
    assert weighting["initial_lr"] == heads["initial_lr"] == 0.5 and len(weighting["params"]) == 2


def test_timms_plateau_is_resumed_with_all_of_its_state():
    options = scheduler(f"{TIMM}.PlateauLRScheduler", "+scheduler.patience_t=3")
    with pytest.warns(FutureWarning):
        (_, one), (_, other) = built(*options), built(*options)
    assert one.scheduler.lr_scheduler.mode == "min"
    one.scheduler.step(1, 1.0)
    one.scheduler.step(2, 2.0)
    other.load_state_dict(one.state_dict())
    assert other.scheduler.lr_scheduler.num_bad_epochs == one.scheduler.lr_scheduler.num_bad_epochs == 1
