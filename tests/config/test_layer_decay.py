"""Groups of layers and of weight decay, against timm's own grouping of the whole model with its classifier."""

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay

from mtl.config import load
from mtl.config.build import build
from mtl.errors import ConfigError

SMALL = [
    "scheduler=constant", "data.image_size=16", "+data.pairs_per_digit=1", "device=cpu", "tracker=jsonl",
    "trainer.max_steps=3", "optimizer.lr=1",
]  # fmt: skip
LR = 1.0


def settings(state):
    """By parameter, its learning rate and its weight decay."""
    names = {parameter: name for name, parameter in state.model.named_parameters()}
    groups = state.optimizer.param_groups
    assert sum(len(g["params"]) for g in groups) == len(names), "each in one group"
    return {names[p]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}


def timms(name, groups):
    """The same of timm's groups, for its trunk, under our names; its classifier's as that of every head."""
    model = timm.create_model(name)
    by_id = {id(p): (g.get("lr_scale", 1.0), g["weight_decay"]) for g in groups(model) for p in g["params"]}
    return {f"backbone.model.{n}": by_id[id(p)] for n, p in model.named_parameters()}


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
@pytest.mark.parametrize("excluded", [False, True], ids=["all decay", "matrices decay"])
def test_layers_are_timms(name, excluded):
    overrides = [
        f"backbone.name={name}",
        "optimizer.layer_decay=0.5",
        "optimizer.weight_decay=0.1",
        "data.image_size=32",
    ]
    _, state = build(load([*SMALL, *overrides, f"optimizer.weight_decay_exclude_1d={excluded}".lower()]))
    theirs = timms(
        name,
        lambda model: param_groups_layer_decay(
            model,
            0.1,
            model.no_weight_decay() if excluded and hasattr(model, "no_weight_decay") else (),
            layer_decay=0.5,
            weight_decay_exclude_1d=excluded,
        ),
    )
    ours = settings(state)
    trunk = {key: value for key, value in ours.items() if key.startswith("backbone.")}
    classifier = [key for key in theirs if key not in trunk]
    assert len(classifier) == 2 and trunk == {key: theirs[key] for key in trunk}
    assert {key: ours[key] for key in ours if key not in trunk} == {
        f"heads.{task}.{kind}": (LR, 0.0 if excluded and kind == "bias" else 0.1)
        for task in ("left", "right")
        for kind in ("weight", "bias")
    }
    assert {theirs[key][0] for key in classifier} == {LR} and len({rate for rate, _ in trunk.values()}) > 2


def test_weight_decay_of_matrices_alone_is_timms():
    _, state = build(load([*SMALL, "backbone.name=test_vit", "optimizer.weight_decay_exclude_1d=true"]))
    theirs = timms(
        "test_vit", lambda model: param_groups_weight_decay(model, 0.01, no_weight_decay_list=model.no_weight_decay())
    )
    ours = settings(state)
    assert all(value == theirs[key] for key, value in ours.items() if key.startswith("backbone."))
    assert ours["backbone.model.pos_embed"] == (LR, 0.0) and ours["heads.left.weight"] == (LR, 0.01)
    _, state = build(load([*SMALL, "backbone.name=test_vit"]))
    assert set(settings(state).values()) == {(LR, 0.01)}, "the negative control"


def test_it_multiplies_the_rates_of_groups_and_of_schedules():
    _, state = build(load([
        *SMALL, "optimizer.layer_decay=0.5", "optimizer.groups.backbone.lr=0.1", "scheduler=cosine",
        "+optimizer.groups.backbone.model.layer1.lr=0.2", "trainer.max_steps=1000",
    ]))  # fmt: skip
    ours = {name: rate for name, (rate, _) in settings(state).items()}
    layers = {g["name"] for g in state.optimizer.param_groups}
    assert {"heads", "backbone.layer_0", "backbone.model.layer1.layer_1"} <= layers
    base = [g["initial_lr"] for g in state.optimizer.param_groups if g["name"] == "backbone.model.layer1.layer_1"]
    top = max(int(name.rpartition("_")[2]) for name in layers if name.startswith("backbone.layer_"))
    assert base == [pytest.approx(0.2 * 0.5**top)] and ours["heads.left.weight"] > ours["backbone.model.conv1.0.weight"]


def test_stages_are_the_layers_where_timm_has_none():
    """Of a pyramid, and of a plain sequence; the parameters of the last have the heads' rate times the decay."""
    mlp = ["backbone=mlp", "optimizer.layer_decay=0.5"]
    _, state = build(load([*SMALL, *mlp]))
    rates = {name: rate for name, (rate, _) in settings(state).items()}
    assert [rates[f"backbone.{n}.weight"] for n in (1, 3, 5)] == [0.125, 0.25, 0.5]
    assert rates["heads.left.bias"] == 1


def test_every_expert_has_the_layers_of_one():
    options = ["architecture=mmoe", "architecture.experts=2", "optimizer.layer_decay=0.5"]
    _, state = build(load([*SMALL, *options]))
    rates = {name: rate for name, (rate, _) in settings(state).items()}
    ours = [rates[name] for name in rates if name.endswith("conv1.0.weight") and "model.conv1" in name]
    assert len(ours) == 2 and len(set(ours)) == 1 and ours[0] < 0.2
    gates = [rate for name, rate in rates.items() if "gate" in name]
    assert gates and set(gates) == {1.0}


def test_a_step_is_that_of_torch_with_the_same_groups():
    parts, state = build(load([*SMALL, "optimizer.layer_decay=0.5", "optimizer.weight_decay_exclude_1d=true"]))
    before = {name: p.detach().clone() for name, p in state.model.named_parameters()}
    alone = {name: torch.nn.Parameter(p.clone()) for name, p in before.items()}
    own = settings(state)
    reference = torch.optim.AdamW([
        {"params": [p], "lr": own[name][0], "weight_decay": own[name][1]} for name, p in alone.items()
    ])  # fmt: skip
    inputs, targets = parts.data.train.batch(range(8), 0)
    state.strategy.run(state.engine, inputs, targets)
    for name, p in state.model.named_parameters():
        alone[name].grad = p.grad.clone()
    state.optimizer.step()
    reference.step()
    for name, p in state.model.named_parameters():
        torch.testing.assert_close(p, alone[name])
    assert any(not torch.equal(p, before[name]) for name, p in state.model.named_parameters())


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["optimizer.layer_decay=1.5"], "optimizer.layer_decay=1.5 must be above 0 and at most 1, as 0.75, or null."),
        (["optimizer.layer_decay=true"], "optimizer.layer_decay=True must be above 0 and at most 1"),
        (["optimizer.layer_decay=much"], "optimizer.layer_decay=much must be above 0 and at most 1"),
        (["optimizer.weight_decay_exclude_1d=norms"], "optimizer.weight_decay_exclude_1d=norms must be true or false."),
        (
            ["optimizer.layer_decay=0.5", "~backbone", "+backbone._target_=support.networks.NoStages"],
            "optimizer.layer_decay=0.5: the stages of NoStages are not known; use a timm ResNet",
        ),
        (
            ["optimizer=sgd", "optimizer._target_=torch.optim.Rprop", "~optimizer.momentum", "~optimizer.weight_decay",
             "optimizer.weight_decay_exclude_1d=true"],
            "optimizer.weight_decay is not an argument of torch.optim.Rprop",
        ),
    ],
    ids=["too large", "no number", "a word", "no truth", "no layers", "no weight decay"],
)  # fmt: skip
def test_a_bad_value_is_one_sentence(overrides, words):
    with pytest.raises(ConfigError) as caught:
        build(load([*SMALL, *overrides]))
    assert str(caught.value).startswith(words)
