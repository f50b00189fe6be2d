"""The groups of an optimizer, against the names of the parameters, and the steps that it cannot take."""

import pytest
import torch
from torch import nn

from mtl.config import check, load
from mtl.config.build import build
from mtl.errors import ConfigError

SMALL = ["scheduler=constant", "data.image_size=16", "+data.pairs_per_digit=1", "device=cpu", "tracker=jsonl"]


def built(*overrides):
    return build(load([*SMALL, "trainer.max_steps=3", *overrides]))


def grouped(state):
    """By group, its settings and the names of its parameters."""
    names = {parameter: name for name, parameter in state.model.named_parameters()}
    return {g["name"]: (g, {names[p] for p in g["params"]}) for g in state.optimizer.param_groups}


def named(state, *prefixes):
    return {name for name, _ in state.model.named_parameters() if name.startswith(prefixes)}


# ------------------------------------------------------------------------------------------------------- groups


def test_the_innermost_group_wins_and_has_the_settings_of_those_around_it():
    _, state = built(
        "optimizer.groups.backbone.lr=0.1", "+optimizer.groups.backbone.weight_decay=0.3",
        "+optimizer.groups.backbone.model.layer1.lr=0.2",
        "+optimizer.groups.backbone.model.layer1.0.conv1.weight_decay=0",
        "+optimizer.groups.heads.left.lr=0.4",
    )  # fmt: skip
    groups = grouped(state)
    settings = {name: (group["lr"], group["weight_decay"]) for name, (group, _) in groups.items()}
    assert settings == {
        "backbone": (0.1, 0.3), "heads": (2e-3, 0.01), "heads.left": (0.4, 0.01), "backbone.model.layer1": (0.2, 0.3),
        "backbone.model.layer1.0.conv1": (0.2, 0),
    }  # fmt: skip
    conv, layer = named(state, "backbone.model.layer1.0.conv1."), named(state, "backbone.model.layer1.")
    assert len(conv) == 1 and conv < layer
    assert groups["backbone.model.layer1.0.conv1"][1] == conv
    assert groups["backbone.model.layer1"][1] == layer - conv
    assert groups["backbone"][1] == named(state, "backbone.") - layer
    assert groups["heads.left"][1] == named(state, "heads.left.")
    assert groups["heads"][1] == named(state, "heads.right.")


def test_a_group_whose_rate_is_zero_stays_and_the_others_move():
    parts, state = built("+optimizer.groups.heads.left.lr=0", "optimizer=sgd")
    before = {name: p.detach().clone() for name, p in state.model.named_parameters()}
    inputs, targets = parts.data.train.batch(range(8), 0)
    state.strategy.run(state.engine, inputs, targets)
    state.optimizer.step()
    moved = {name for name, p in state.model.named_parameters() if not torch.equal(p, before[name])}
    assert not moved & named(state, "heads.left.")
    assert moved >= named(state, "heads.right.")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+optimizer.groups.heads.lft.lr=1"],
         r"optimizer.groups.heads.lft: heads \(a ModuleDict\) has no submodule lft; did you mean left"),
        (["+optimizer.groups.backbone.model.layr1.lr=1"],
         r"optimizer.groups.backbone.model.layr1: backbone.model \(a ResNet\) has no .* layr1; did you mean layer1"),
        (["+optimizer.groups.heads.left.lrr=1"], "groups.heads.left.lrr is not an argument of .*; did you mean lr"),
        (["+optimizer.groups.heads.left.lr=-1"], "optimizer.groups.heads.left.lr=-1 must be 0 or more"),
        (["+optimizer.groups.heads.left=1"],
         "optimizer.groups.heads.left=1 must be a mapping, as in optimizer.groups.heads.left.lr=…"),
        (["+optimizer.groups.heads.left.weight.lr=1"], "has no submodule weight; it has none"),
        (["freeze=[backbone.model.layer1]", "+optimizer.groups.backbone.model.layer1.lr=1"],
         "optimizer.groups.backbone.model.layer1 has no parameter to train"),
        (["head@heads.left=mlp", "head@heads.right=mlp", "share=['2']", "+optimizer.groups.heads.left.lr=1",
          "+optimizer.groups.heads.right.lr=2"], "heads.left and heads.right have a parameter in common"),
    ],
)  # fmt: skip
def test_an_impossible_group_is_named(overrides, message):
    with pytest.raises(ConfigError, match=message):
        built(*overrides)


# ----------------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optimizer.lr=-1", "optimizer.lr=-1 must be 0 or more."),
        ("optimizer.lr=nan", "optimizer.lr=nan must be 0 or more."),
        ("optimizer.weight_decay=-0.5", "optimizer.weight_decay=-0.5 must be 0 or more."),
        ("+optimizer.eps=-1e-8", "optimizer.eps=-1e-08 must be 0 or more."),
        ("+optimizer.betas=[0.9,1.0]", "optimizer.betas=[0.9, 1.0] must be numbers from 0 to below 1."),
        ("optimizer.groups.heads.lr=-1", "optimizer.groups.heads.lr=-1 must be 0 or more."),
        ("+optimizer.groups.backbone.betas=[-1,0.9]",
         "optimizer.groups.backbone.betas=[-1, 0.9] must be numbers from 0 to below 1."),
        ("+optimizer.groups.backbone.model.layer1.weight_decay=-1",
         "optimizer.groups.backbone.model.layer1.weight_decay=-1 must be 0 or more."),
    ],
)  # fmt: skip
def test_an_argument_out_of_range_is_named_before_anything_is_built(override, words):
    with pytest.raises(ConfigError) as caught:
        check(load([override]))
    assert str(caught.value) == words
    check(load([override.partition("=")[0] + ("=[0,0.9]" if "betas" in override else "=0")]))


@pytest.mark.parametrize(
    ("target", "override", "words"),
    [
        ("torch.optim.Adadelta", "+optimizer.rho=2", "optimizer.rho=2: Invalid rho value: 2"),
        ("torch.optim.Rprop", "+optimizer.etas=[2,3]", "optimizer.etas=[2, 3]: Invalid eta values: 2, 3"),
        ("torch.optim.SGD", "+optimizer.nesterov=true", "optimizer.nesterov=True: Nesterov momentum requires"),
    ],
)
def test_an_argument_that_the_optimizer_refuses_is_named(target, override, words):
    with pytest.raises(ConfigError) as caught:
        built(*own(target), override)
    assert str(caught.value).startswith(words)


# -------------------------------------------------------------------------------------------------------- steps


class NeedsClosure(torch.optim.SGD):
    """An optimizer that runs the model again in its step."""

    def step(self, closure):
        closure()


class AssertsClosure(torch.optim.SGD):
    """One that hides it behind a default, as the SAM that most people use."""

    def step(self, closure=None):
        assert closure is not None, "requires closure"


class SecondOrder(torch.optim.SGD):
    """One that differentiates the gradients."""

    def step(self, closure=None):
        (p,) = self.param_groups[0]["params"][:1]
        torch.autograd.grad(p.grad.sum(), p)


class OptionalClosure(torch.optim.SGD):
    """A step that would take a closure and need not, and draws random numbers."""

    def step(self, closure=None, *, scale=1.0):
        torch.rand(1)
        return super().step(closure)


def own(target):
    return ["~optimizer", f"+optimizer._target_={target}", "+optimizer.lr=0.1"]


@pytest.mark.parametrize("target", ["torch.optim.LBFGS", f"{__name__}.NeedsClosure"])
def test_an_optimizer_that_needs_a_closure_is_refused(target):
    with pytest.raises(ConfigError, match=f"^optimizer._target_={target} needs closure in its step"):
        built(*own(target))


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (f"{__name__}.AssertsClosure", "requires closure"),
        (f"{__name__}.SecondOrder", "does not require grad"),
        ("timm.optim.Adahessian", "does not require grad"),
    ],
)
def test_an_optimizer_that_cannot_step_after_one_pass_is_refused(target, words):
    with pytest.raises(ConfigError, match=f"^optimizer._target_={target} cannot take a step .*{words}"):
        built(*own(target))


@pytest.mark.parametrize("target", [f"{__name__}.OptionalClosure", "torch.optim.RMSprop", "timm.optim.Lion"])
def test_an_optimizer_whose_closure_is_optional_is_built_and_leaves_no_trace(target):
    _, state = built(*own(target))
    assert not state.optimizer.state
    drawn = torch.rand(1)
    built()
    assert torch.equal(torch.rand(1), drawn)


# ------------------------------------------------------------------------------------------------------- frozen


class Untrained(nn.Module):
    """A backbone that takes its own parameters out of the training."""

    def __init__(self, in_channels, keeps_statistics=False):
        super().__init__()
        self.model = nn.Sequential(
            nn.Conv2d(in_channels, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.model.requires_grad_(False)
        self.keeps_statistics = keeps_statistics

    def train(self, mode=True):
        return super().train(mode and not self.keeps_statistics)

    def forward(self, images):
        return self.model(images)


UNTRAINED = ["~backbone", f"+backbone._target_={__name__}.Untrained"]


def test_a_backbone_that_is_not_trained_but_whose_statistics_move_is_said_with_the_remedy(caplog):
    built(*UNTRAINED)
    said = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert (
        len(said) == 1 and said[0].startswith("backbone has no parameter to train") and "freeze=[backbone]" in said[0]
    )


@pytest.mark.parametrize(
    "remedy", [[*UNTRAINED, "freeze=[backbone]"], [*UNTRAINED, "+backbone.keeps_statistics=true"], []]
)
def test_what_does_not_move_or_is_trained_is_not_warned_of(caplog, remedy):
    built(*remedy)
    assert not [record.message for record in caplog.records if record.levelname == "WARNING"]
