"""What ``freeze`` names stays as it was, to the last bit, and everything else trains as it would without it."""

from collections import Counter

import pytest
import torch
from support.exactness import same
from torch import nn

from mtl.config import load
from mtl.config.build import build
from mtl.errors import ConfigError
from mtl.model import MultiTaskModel
from mtl.runs import checkpoint
from mtl.train import train

SMALL = [
    "data.image_size=16", "+data.pairs_per_digit=1", "trainer.max_steps=6", "trainer.val_every=3", "scheduler=constant",
    "trainer.limit_val_batches=1", "trainer.log_every=2", "conflict.every=3", "tracker=jsonl", "device=cpu",
]  # fmt: skip


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    monkeypatch.setattr("mtl.runs.figures.draw_run", lambda folder: None)


def moved(folder, *overrides, which="model"):
    """The names of what a run changes, parameters and buffers; batch counters aside, which change with the means."""
    _, state = build(load([*SMALL, *overrides]))
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    train(load([*SMALL, *overrides]), folder)
    after = checkpoint.load(folder)[which]
    return {name for name, value in after.items() if not torch.equal(value, before[name])}


def is_in(name, frozen):
    return any(name.startswith(f"{part}.") for part in frozen)


@pytest.mark.parametrize(
    ("strategy", "frozen"),
    [(strategy, ["backbone"]) for strategy in ("naive", "detached", "mgda")]
    + [(strategy, ["backbone.model.conv1", "backbone.model.bn1", "heads.left"]) for strategy in ("naive", "pcgrad")],
)
def test_what_is_frozen_keeps_its_parameters_and_its_statistics(tmp_path, strategy, frozen):
    changed = moved(tmp_path, f"freeze=[{','.join(frozen)}]", f"strategy={strategy}")
    assert not {name for name in changed if is_in(name, frozen)}
    everything = set(checkpoint.load(tmp_path)["model"])
    assert everything - changed == {name for name in everything if is_in(name, frozen)}  # all else moves


@pytest.mark.parametrize(
    "options",
    [["trainer.ema=0.5"], ["trainer.accumulate_grad_batches=2", "trainer.accumulate=exact"],
     ["strategy=mgda", "strategy.space=parameters"], ["conflict.audit_every=2"], ["weighting=gradnorm"],
     ["trainer.on_nan=skip", "trainer.grad_clip_norm=0.1"]],
    ids=" ".join,
)  # fmt: skip
def test_it_stays_with_other_settings(tmp_path, options):
    frozen = ["backbone.model.layer1"]
    changed = moved(
        tmp_path, f"freeze={frozen}".replace("'", ""), *options, which="ema" if "ema" in options[0] else "model"
    )
    assert changed and not {name for name in changed if is_in(name, frozen)}


def test_a_rate_of_zero_is_not_the_same(tmp_path):
    """The negative control: without the key the statistics move."""
    changed = moved(tmp_path, "optimizer.groups.backbone.lr=0")
    assert {name.rpartition(".")[2] for name in changed if name.startswith("backbone.")} >= {
        "running_mean",
        "running_var",
    }


PASSES: Counter = Counter()


class Counting(nn.Module):
    """A backbone that counts its backward passes in PASSES."""

    def __init__(self, image_size):
        super().__init__()
        self.layer = nn.Sequential(nn.Flatten(), nn.Linear(image_size**2, 8))

    def forward(self, images):
        features = self.layer(images)
        if features.requires_grad:
            features.register_hook(lambda _: PASSES.update(["backward"]))
        return features


@pytest.mark.parametrize("strategy", ["naive", "detached", "mgda"])
@pytest.mark.parametrize(("freeze", "passes"), [("[backbone]", 0), ("[]", 6)])
def test_a_frozen_backbone_has_no_backward(tmp_path, strategy, freeze, passes):
    PASSES.clear()
    options = ["~backbone", f"+backbone._target_={__name__}.Counting", f"strategy={strategy}", f"freeze={freeze}"]
    train(load([*SMALL, *options, "conflict.every=null"]), tmp_path)
    assert PASSES["backward"] == passes


def test_a_resumed_run_leaves_what_a_whole_one_leaves(tmp_path):
    options = [*SMALL, "freeze=[backbone.model.layer1]", "trainer.ema=0.9"]
    train(load(options), tmp_path / "whole")
    train(load([*options, "trainer.max_steps=3"]), tmp_path / "parts")
    train(load([*options, f"resume={tmp_path / 'parts'}"]), tmp_path / "parts")
    whole, parts = (checkpoint.load(tmp_path / name) for name in ("whole", "parts"))
    assert all(same(whole[key], parts[key]) for key in ("model", "ema", "optimizer"))
    with pytest.raises(ConfigError, match="freeze was"):
        train(load([*SMALL, "trainer.ema=0.9", f"resume={tmp_path / 'parts'}"]), tmp_path / "parts")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bakbone", "freeze=bakbone: the model has no submodule bakbone; did you mean backbone"),
        ("backbone.model.conv3", r"backbone.model \(a ResNet\) has no submodule conv3; did you mean conv1"),
        ("backbone.model.conv1.0.weight", r"conv1.0 \(a Conv2d\) has no submodule weight; it has none"),
        ("left", r"the model has no submodule left; accepted: backbone, heads"),
    ],
)
def test_a_misspelt_name_is_a_mistake(name, message):
    with pytest.raises(ConfigError, match=message):
        build(load([*SMALL, f"freeze=[{name}]"]))


def test_a_model_of_ones_own_can_be_frozen_too():
    norm = nn.BatchNorm1d(3)
    model = MultiTaskModel(nn.Sequential(nn.Linear(3, 3), norm), {"a": nn.Linear(3, 1)}, freeze=["backbone.1"])
    for mode in (True, False, True):
        assert model.train(mode).training is mode and not norm.training and model.backbone[0].training is mode
    assert [p.requires_grad for p in model.parameters()] == [True, True, False, False, True, True]
