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
        ("backbone.model.conv1.0.wait", r"conv1.0 \(a Conv2d\) has no submodule wait; it has none"),
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


# ---------------------------------------------------------------------------------------------- stages, parameters


@pytest.mark.parametrize(
    ("backbone", "until", "frozen"),
    [
        ("test_resnet", 2, ("conv1", "bn1", "layer1", "layer2")),
        ("test_convnext", 1, ("stem", "stages.0")),
        ("test_vit", 2, ("patch_embed", "cls_token", "pos_embed", "blocks.0", "blocks.1", "blocks.2")),
    ],
)
def test_the_first_stages_are_frozen(tmp_path, backbone, until, frozen):
    changed = moved(tmp_path, f"backbone.name={backbone}", f"freeze=[backbone:{until}]", "data.image_size=32")
    everything = set(checkpoint.load(tmp_path)["model"])
    expected = {n for n in everything if f"{n}.".startswith(tuple(f"backbone.model.{part}." for part in frozen))}
    assert expected and everything - changed == expected


def test_stages_of_a_sequence(tmp_path):
    changed = moved(tmp_path, "backbone=mlp", "freeze=[backbone:1,heads.left.bias]")
    everything = set(checkpoint.load(tmp_path)["model"])
    assert everything - changed == {"backbone.1.weight", "backbone.1.bias", "heads.left.bias"}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["freeze=[backbone:5]"], "freeze=backbone:5 must be backbone:1 to backbone:4, the first stages of so many."),
        (["freeze=[backbone:0]"], "freeze=backbone:0 must be backbone:1 to backbone:4"),
        (["freeze=[backbone:x]"], "freeze=backbone:x must be backbone:1 to backbone:4"),
        (["freeze=[backbone:1]", "architecture=mmoe"], "freeze=backbone:1: only architecture=hard has stages to count"),
        (["freeze=[backbone:1]", "architecture=cross_stitch"], "freeze=backbone:1: only architecture=hard has stages"),
        (["freeze=[backbone:1]", "backbone.name=test_efficientnet"], "freeze=backbone:1: the stages of timm's Effic"),
        (["trainer.unfreeze_at=2"], "trainer.unfreeze_at=2 needs something frozen, as in freeze=[backbone]."),
        (["trainer.unfreeze_at=0", "freeze=[backbone]"], "trainer.unfreeze_at=0 must be 1 or more."),
        (["trainer.unfreeze_at=2", "freeze=[backbone]", "trainer.shard=all"], "trainer.unfreeze_at=2: sharded parame"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_stages_that_there_are_not_are_a_mistake(overrides, words):
    with pytest.raises(ConfigError) as caught:
        build(load([*SMALL, *overrides, "trainer.fast_dev_run=true"]))
    assert str(caught.value).startswith(words)


# ---------------------------------------------------------------------------------------------------- unfreezing


UNFREEZE = ["freeze=[backbone.model.layer1,heads.left]", "trainer.unfreeze_at=3"]


def reference(options, steps):
    """The same steps by hand, in a loop of its own: without gradients for the frozen parts until they are trained."""
    parts, state = build(load([*SMALL, "trainer.max_steps=6", *options]))
    from mtl.training.loaders import train_batches
    from mtl.training.schedule import Plan

    cfg = load([*SMALL, "trainer.max_steps=6", *options])
    batches = iter(train_batches(parts.data, cfg, state, Plan.from_data(parts.data, cfg.trainer, cfg.conflict)))
    held = [p for n, p in state.model.named_parameters() if is_in(n, ["backbone.model.layer1", "heads.left"])]
    rest = [p for n, p in state.model.named_parameters() if not is_in(n, ["backbone.model.layer1", "heads.left"])]
    optimizers = [torch.optim.AdamW(group, lr=2e-3, weight_decay=0.01) for group in (rest, held)]
    for step in range(1, steps + 1):
        state.model.train()
        frozen = step <= 3
        for part in (state.model.backbone.model.layer1, state.model.heads["left"]):
            part.train(not frozen)
            part.requires_grad_(not frozen)
        inputs, targets = next(batches)
        state.model.zero_grad()
        outputs = state.model(inputs)
        sum(task.loss(outputs[task.name], targets[task.name]) for task in state.tasks).backward()
        for optimizer in optimizers[: 1 if frozen else 2]:
            optimizer.step()
    return state.model.state_dict()


def test_from_a_step_on_everything_is_trained(tmp_path, caplog):
    """Against two optimizers, of which the second begins with the frozen parts; before and after that step."""
    caplog.set_level("INFO")
    for steps in (3, 6):
        train(load([*SMALL, *UNFREEZE, "strategy=naive", f"trainer.max_steps={steps}"]), tmp_path / str(steps))
        own, expected = checkpoint.load(tmp_path / str(steps))["model"], reference(["strategy=naive"], steps)
        for name, value in expected.items():
            torch.testing.assert_close(own[name], value, rtol=1e-4, atol=1e-5, msg=name)
        if steps == 3:
            assert any("never trained" in r.getMessage() for r in caplog.records if r.levelname == "WARNING")
    said = [r.getMessage() for r in caplog.records if "parameters more are trained" in r.getMessage()]
    assert len(said) == 1 and said[0].startswith("step 4: ") and said[0].endswith("trainer.unfreeze_at=3")
    before, after = (checkpoint.load(tmp_path / name)["model"] for name in ("3", "6"))
    assert not torch.equal(before["backbone.model.layer1.0.bn1.running_mean"],
                           after["backbone.model.layer1.0.bn1.running_mean"])  # fmt: skip


@pytest.mark.parametrize("stop", [2, 3, 5])
def test_a_run_resumed_around_the_step_leaves_what_a_whole_one_leaves(tmp_path, stop):
    options = [*SMALL, *UNFREEZE, "trainer.ema=0.9", "trainer.val_every=1"]
    train(load(options), tmp_path / "whole")
    train(load([*options, f"trainer.max_steps={stop}"]), tmp_path / "parts")
    train(load([*options, f"resume={tmp_path / 'parts'}"]), tmp_path / "parts")
    whole, parts = (checkpoint.load(tmp_path / name) for name in ("whole", "parts"))
    assert all(same(whole[key], parts[key]) for key in ("model", "ema", "optimizer"))


def test_the_optimizer_has_a_state_for_what_has_been_trained_alone(tmp_path):
    options = [*SMALL, *UNFREEZE]
    for steps in (3, 6):
        train(load([*options, f"trainer.max_steps={steps}"]), tmp_path / str(steps))
    before, after = (checkpoint.load(tmp_path / name)["optimizer"]["state"] for name in ("3", "6"))
    assert len(before) < len(after) and {float(s["step"]) for s in before.values()} == {3.0}
    assert {float(s["step"]) for s in after.values()} == {3.0, 6.0}


def test_momentum_of_what_is_trained_later_begins_there(tmp_path):
    """torch's SGD in one kernel would fail in that step."""
    options = [*SMALL, *UNFREEZE, "optimizer=sgd", "backbone=mlp", "freeze=[backbone.1,heads.left]"]
    train(load(options), tmp_path)
    assert all(own["momentum_buffer"] is not None for own in checkpoint.load(tmp_path)["optimizer"]["state"].values())
    with pytest.raises(ConfigError, match=r"optimizer.fused=true: torch's SGD in one kernel cannot begin the momentum"):
        build(load([*options, "+optimizer.fused=true"]))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["naive", "pcgrad"])
def test_a_whole_backbone_is_unfrozen_under_compilation(tmp_path, strategy):
    options = ["freeze=[backbone]", "trainer.unfreeze_at=3", f"strategy={strategy}"]
    changed = {}
    for compiled in ("false", "true"):
        train(load([*SMALL, *options, "backbone=mlp", f"trainer.compile={compiled}"]), tmp_path / compiled)
        changed[compiled] = checkpoint.load(tmp_path / compiled)["model"]
    for name, value in changed["false"].items():
        torch.testing.assert_close(changed["true"][name], value, rtol=1e-4, atol=1e-5)
    _, state = build(load([*SMALL, *options, "backbone=mlp"]))
    assert not torch.equal(changed["true"]["backbone.1.weight"], state.model.state_dict()["backbone.1.weight"])
