"""The group architecture: hard sharing adds nothing, one class and one YAML make another, mistakes are sentences."""

import pytest
import torch
from hydra import initialize_config_dir
from omegaconf import OmegaConf
from support.composing import configuration, options

from mtl.config import CONF, check, load
from mtl.config.build import build, build_parts
from mtl.config.redact import redacted
from mtl.config.schema import completed
from mtl.errors import ConfigError
from mtl.evaluate import evaluate_checkpoint
from mtl.jobs.resume import check_same_config
from mtl.report.runs import read_run
from mtl.runs import checkpoint

TINY = ["~backbone", "+backbone._target_=support.networks.Tiny", "data.image_size=8", "data.batch_size=8",
        "trainer.max_steps=4", "device=cpu", "scheduler=constant"]  # fmt: skip
OWN = ["~architecture", "+architecture._target_=support.own_architecture.{}"]


def own(name):
    return [override.format(name) for override in OWN]


def test_hard_sharing_adds_no_module():
    torch.manual_seed(0)
    parts = build_parts(configuration(*TINY))
    assert type(parts.model.backbone).__name__ == "Tiny"
    assert [name for name, _ in parts.model.named_modules() if name.startswith("heads.")] == [
        "heads.left", "heads.right"
    ]  # fmt: skip
    old = OmegaConf.create({key: value for key, value in configuration(*TINY).items() if key != "architecture"})
    torch.manual_seed(0)
    before = build_parts(old).model.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in parts.model.state_dict().items())


def test_a_run_from_before_the_group_is_resumed_evaluated_and_compared(train_tiny):
    overrides = ["backbone=mlp", "data.image_size=8"]
    folder = train_tiny(*overrides, stop_after=2)
    for path in (folder / "checkpoints").glob("*.pt"):
        content = checkpoint.load(path)
        del content["config"]["architecture"], content["config"]["optimizer"]["sharing"], content["format"]
        checkpoint.save(path, content)
    old = OmegaConf.load(folder / "config.yaml")
    del old["architecture"], old["optimizer"]["sharing"]
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(old))
    assert evaluate_checkpoint(folder / "checkpoints" / "last.pt", "val")["loss/total"] > 0
    assert read_run(folder, "old").config["architecture"] == {"_target_": "mtl.architectures.Hard"}
    train_tiny(*overrides, "resume=auto")
    whole = train_tiny(*overrides, folder="whole")
    ends = [checkpoint.load(run)["model"] for run in (folder, whole)]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_a_run_of_another_architecture_is_not_resumed():
    stored = redacted(load())
    with pytest.raises(
        ConfigError, match=r"architecture._target_ was mtl.architectures.Hard and is mtl.architectures.MM"
    ):
        check_same_config(stored, load(["architecture=mmoe"]))
    check_same_config({key: value for key, value in stored.items() if key != "architecture"}, load())


def test_what_is_recorded_stays_as_it_is():
    own = {"lr": 1, "sharing": {"lr": 2}, "layer_decay": 0.5, "weight_decay_exclude_1d": True}
    recorded = {"architecture": {"_target_": "x"}, "optimizer": own, "seed": 1}
    assert completed(recorded) == recorded
    assert completed({"seed": 1})["architecture"] == {"_target_": "mtl.architectures.Hard"}


@pytest.mark.parametrize("name", options("architecture"))
def test_a_checkpoint_carries_its_architecture(name, train_tiny):
    backbone = "tiny_resnet" if name == "mtan" else "mlp"  # it attends to maps
    folder = train_tiny(f"backbone={backbone}", "data.image_size=8", f"architecture={name}")
    metrics = evaluate_checkpoint(folder, "test")
    last = (folder / "metrics.jsonl").read_text().splitlines()[-1]
    assert all(f'"{metric}": {value!r}' in last for metric, value in metrics.items())


def test_one_class_and_one_yaml_make_an_architecture(tmp_path):
    (tmp_path / "architecture").mkdir()
    (tmp_path / "architecture" / "halves.yaml").write_text("_target_: support.own_architecture.Halves\nstart: 0.25\n")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = load([f"hydra.searchpath=[file://{tmp_path}]", "architecture=halves", "architecture.start=2.0", *TINY])
    check(cfg)
    parts, state = build(cfg)
    assert [reader.scale.item() for reader in (head.reader for head in parts.model.heads.values())] == [2.0, 2.0]
    inputs, targets = parts.data.train.batch([0, 1, 2], epoch=0)
    state.strategy.step(state.model, state.tasks, inputs, targets)
    state.optimizer.step()
    assert all(head.reader.scale.item() != 2.0 for head in parts.model.heads.values())


MISTAKES = {
    "WithoutTrunk": "architecture (WithoutTrunk): its trunk must be a torch.nn.Module, not NoneType.",
    "WithoutReader": "architecture (WithoutReader) must have a method reader(task), which gives a torch.nn.Module or",
    "WrongReader": "architecture (WrongReader): reader(left) must give a torch.nn.Module or None, not str.",
    "FailingReader": "architecture (FailingReader): reader(left) fails: 'left'",
    "InPlace": "architecture.reader(left): ReLU(inplace=True) changes the backbone's features, which",
    "Unfitting": "architecture.reader(left) (Linear) cannot take the backbone's features of shape [2, 8]",
}


@pytest.mark.parametrize("name", MISTAKES)
def test_an_architecture_that_keeps_no_contract_is_named(name):
    with pytest.raises(ConfigError) as error:
        build(load([*TINY, *own(name)]))
    assert MISTAKES[name] in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["architecture=ensemble", "architecture.experts=0"], "architecture: experts=0 must be 1 or more."),
        (["architecture=omoe", "architecture.experts=-1"], "architecture: experts=-1 must be 1 or more."),
        (["architecture=mmoe", "architecture.experts=0"], "architecture: experts=0 must be 1 or more."),
        (["architecture=mmoe", "architecture.experts=x"], "architecture.experts=x has the wrong type"),
        (["architecture=mmoe", "+architecture.expert=2"], "architecture.expert is not an argument of mtl."),
        (["architecture=mmoe", "data=stdlib", f"data.path={__file__}"], "architecture: a gate reads one tensor"),
        (["architecture=mmoe", "~backbone", "+backbone={_target_: torch.nn.Linear, in_features: 3, out_features: 4}"],
         "backbone: cannot take inputs of shape [2, 1, 8, 8]"),
        (["architecture=mmoe", "~backbone", "+backbone._target_=mtl.backbones.Timm", "+backbone.name=test_resnett"],
         "backbone: name=test_resnett is no timm model; the closest are"),
        (["~backbone", "+backbone._target_=builtins.dict"],
         "backbone must be a torch.nn.Module, but its _target_ gives a dict"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(overrides, message):
    setting = [] if any(text.startswith("data=") for text in overrides) else TINY
    with pytest.raises(ConfigError) as error:
        cfg = load([*setting, *overrides] if "~backbone" not in overrides else [*overrides, *TINY[2:]])
        check(cfg)
        build(cfg)
    assert str(error.value).startswith(message)
