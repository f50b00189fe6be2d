"""Whoever watches a run changes no bit of it: measuring, auditing, logging, evaluating, drawing, loading, W&B."""

import pytest
import torch
from support.exactness import assert_same, differing
from support.networks import make
from torch import nn

from mtl.config import load
from mtl.config.build import build
from mtl.engine.engine import Engine
from mtl.engine.weighting import observe_after_update
from mtl.rules import MGDA, PCGrad, Sum
from mtl.runs.checkpoint import load as load_file
from mtl.strategies import Balanced, Detached, Naive
from mtl.train import train
from mtl.weightings import FAMO, Equal, Log


class Trunk(nn.Sequential):
    """Statistics of the batch, and random numbers."""

    def __init__(self, image_size):
        super().__init__(
            nn.Flatten(), nn.Linear(image_size**2, 8), nn.BatchNorm1d(8), nn.Dropout(0.1), nn.Tanh(), Noise()
        )


class Noise(nn.Module):
    """Draws in evaluation too, as Monte Carlo dropout."""

    def forward(self, x):
        return x + 0.1 * torch.randn_like(x)


class Head(nn.Sequential):
    """Its own statistics and random numbers."""

    def __init__(self, in_features, out_features):
        super().__init__(nn.Linear(in_features, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, out_features))


HEAD = "_target_=tests.training.test_observers.Head"
RUN = [
    "~backbone", "+backbone._target_=tests.training.test_observers.Trunk", f"heads.left.{HEAD}", f"heads.right.{HEAD}",
    "data.image_size=8", "data.batch_size=8", "+data.pairs_per_digit=1", "device=cpu", "trainer.max_steps=6",
    "trainer.limit_val_batches=1", "tracker=jsonl",
]  # fmt: skip
NOBODY = ["conflict.every=null", "trainer.log_every=100", "trainer.val_every=6", "trainer.examples=0"]
EVERYBODY = [
    "conflict.every=1", "conflict.audit_every=1", "trainer.log_every=1", "trainer.val_every=1", "trainer.examples=2",
    "trainer.checkpoint_every=2", "trainer.num_workers=1", "conflict.affinity_every=1",
]  # fmt: skip
RUNS = {
    "naive": ["strategy=naive"],
    "detached": ["strategy=detached", "trainer.ema=0.9"],
    "a rule that draws": ["strategy=pcgrad"],
    "parameters": ["strategy=mgda", "strategy.space=parameters", "strategy.every=2"],
    "features, now and then": ["strategy=mgda", "strategy.every=3"],
    "rows": ["strategy=moco"],
    "revisited": ["strategy=detached", "weighting=famo", "trainer.accumulate_grad_batches=2"],
    "pieces": [
        "strategy=mgda",
        "trainer.accumulate_grad_batches=2",
        "trainer.accumulate=exact",
        "conflict.affinity_every=0",
    ],
}
# What is not of the training: the best model, and what was measured.
OF_TRAINING = "model", "ema", "losses", "strategy", "optimizer", "scheduler", "rng", "step"


def left(folder):
    content = load_file(folder / "checkpoints" / "last.pt")
    # How often the audit has looked says which pair of tasks is next.
    strategy = {name: value for name, value in content["strategy"].items() if not name.startswith("audit.")}
    # Python's own generator is none of the training's: what is imported in its first run may draw from it.
    drawn = [{name: rng[name] for name in ("cpu", "cuda", "numpy")} for rng in content["rng"]]
    return {name: content[name] for name in OF_TRAINING} | {"strategy": strategy, "rng": drawn}


@pytest.mark.parametrize("name", RUNS)
def test_observers_change_no_bit(tmp_path, monkeypatch, name):
    monkeypatch.setattr("mtl.runs.figures.draw_run", lambda folder: None)
    train(load([*RUN, *NOBODY, *RUNS[name]]), tmp_path / "unseen")
    train(load([*RUN, *EVERYBODY, *RUNS[name]]), tmp_path / "seen")
    assert_same(left(tmp_path / "unseen"), left(tmp_path / "seen"))


def test_another_seed_is_seen(tmp_path, monkeypatch):
    """Negative control."""
    monkeypatch.setattr("mtl.runs.figures.draw_run", lambda folder: None)
    for seed in (0, 1):
        train(load([*RUN, *NOBODY, "trainer.max_steps=1", "trainer.val_every=1", f"seed={seed}"]), tmp_path / str(seed))
    assert differing(left(tmp_path / "0"), left(tmp_path / "1"))


# ----------------------------------------------------------------------------- batch statistics in one step

NAMES = ["task0", "task1", "task2"]
STRATEGIES = {
    "naive": lambda: Naive(Equal()),
    "detached": lambda: Detached(Equal()),
    "late": lambda: Detached(Log()),
    "revisited": lambda: Detached(FAMO(NAMES)),
    **{s: lambda s=s: Balanced(Equal(), MGDA(), NAMES, space=s) for s in ("features", "features_sum", "parameters")},
    "held": lambda: Balanced(Equal(), Sum(), NAMES, head_scale="weights"),
    "drawn": lambda: Balanced(Equal(), PCGrad(), NAMES, space="parameters"),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_running_statistics_move_once_a_step_as_in_plain_training(name):
    """Whatever the number of passes backward, with the audit and the losses after the update."""
    model, tasks, inputs, targets = make("pooled", 3)
    twin = make("pooled", 3)[0]
    torch.manual_seed(1)
    twin(inputs)
    torch.manual_seed(1)
    strategy, engine = STRATEGIES[name](), Engine(model, tasks)
    strategy.run(engine, inputs, targets, measure=True, audit=True)
    if strategy.weighting.needs_losses_after_update:
        observe_after_update(engine, strategy.weighting, inputs, targets)
    assert {int(b) for n, b in model.named_buffers() if "num_batches" in n} == {1}
    assert differing(dict(twin.named_buffers()), dict(model.named_buffers())) == []
    twin(inputs)  # negative control
    assert differing(dict(twin.named_buffers()), dict(model.named_buffers()))


# --------------------------------------------------------------------------------- the build leaves no trace

MADE = {}


class Watched(nn.Module):
    """Remembers what it was, and what the global random numbers were, when it was made; no pass leaves it as it was."""

    def __init__(self, in_features, out_features):
        super().__init__()
        self.inner, self.seen = Head(in_features, out_features), []
        self.register_buffer("passes", torch.zeros(()))
        MADE[out_features] = {name: value.clone() for name, value in self.state_dict().items()}
        MADE["rng"] = torch.get_rng_state()

    def forward(self, z):
        self.passes += 1
        self.seen.append(out := self.inner(z) + torch.rand(()))
        return out


WATCHED = [*RUN, *(f"heads.{task}._target_=tests.training.test_observers.Watched" for task in ("left", "right"))]


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["strategy=mgda", "strategy.space=parameters", "trainer.ema=0.9"],
        ["losses.left._target_=tests.config.test_rehearsal.Dice"],
        ["losses.left._target_=tests.config.test_rehearsal.Noisy", "trainer.accumulate_grad_batches=2"],
    ],
)
def test_a_build_leaves_the_model_and_the_random_numbers_as_they_were_made(overrides):
    parts, state = build(load([*WATCHED, *overrides]))
    assert torch.equal(torch.get_rng_state(), MADE["rng"])
    heads = parts.model.heads
    assert all(head.training and head.seen == [] and head.passes == 0 for head in heads.values())
    assert all(p.grad is None for p in parts.model.parameters())
    assert differing(MADE[10], heads["right"].state_dict()) == []
    if state.ema is not None:
        assert differing(state.ema.module.state_dict(), parts.model.state_dict()) == []
    heads["right"](torch.randn(2, 8))  # negative control
    assert not torch.equal(torch.get_rng_state(), MADE["rng"]) and differing(MADE[10], heads["right"].state_dict())
