"""Every architecture trains the digits under every kind of strategy, and goes on to the last bit."""

from functools import partialmethod

import pytest
import torch
from support.composing import configuration, options
from support.going_on import goes_on
from torch import nn

from mtl.config import load
from mtl.config.build import build
from mtl.data import office
from mtl.data.loader import Batches, sequential
from mtl.runs import checkpoint
from mtl.runs.files import read_metrics

SETTING = [
    "~backbone", "+backbone._target_=support.networks.TwoLayers", "data.image_size=8", "data.batch_size=8",
    "+head@heads.sum=linear", "heads.sum.out_features=19", "+losses.sum._target_=torch.nn.CrossEntropyLoss",
    "trainer.max_steps=10", "trainer.limit_train_batches=2", "scheduler=constant",
]  # fmt: skip
KINDS = {
    "naive": ["strategy=naive"],
    "detached": ["strategy=detached"],
    "learned weighting": ["strategy=detached", "weighting=uw"],
    "late weighting": ["strategy=detached", "weighting=famo"],
    "rule": ["strategy=mgda"],
    "rule, weighted heads": ["strategy=pcgrad", "strategy.head_scale=weights"],
    "rule, every third step": ["strategy=nash_mtl", "strategy.every=3"],
    "rule on sums": ["strategy=mgda", "strategy.space=features_sum"],
    "rule on parameters": ["strategy=mgda", "strategy.space=parameters"],
    "rule on rows": ["strategy=moco", "strategy.space=parameters"],
    "rotations": ["strategy=rotograd"],
}
OPTIONS = {
    "dselect_k": ["architecture.entropy=0.1"],
    "ltb": ["architecture.warm_up=0.2"],
    "lora": ["architecture.dropout=0"],
}
SILENT = ("nddr", "film", "lora", "rotograd")  # they log nothing of themselves
TRANSFORMER = {"lora": ["backbone=vit_tiny", "backbone.name=test_vit"]}
PLAIN = [
    "~backbone", "+backbone._target_=support.networks.Deterministic", "data.image_size=8", "device=cpu",
    "optimizer=sgd", "scheduler=constant", "trainer.log_every=1",
]  # fmt: skip
# Where no two heads read a feature in common, a rule at the features is refused.
ALL = [kind for kind in KINDS if kind != "rotations"]  # which one architecture has, and no other strategy trains
KINDS_OF = {
    "film": [kind for kind in ALL if not kind.startswith("rule") or kind.startswith("rule on param")],
    "rotograd": ["rotations"],
}
ON_MAPS = {"mtan": ["backbone=tiny_resnet"]}  # it attends to maps


def setting(name, overrides):
    """The overrides, with a backbone that has what the architecture needs."""
    kept = [text for text in overrides if "backbone" not in text] if name in ON_MAPS else overrides
    return [*kept, f"architecture={name}", *ON_MAPS.get(name, ()), *OPTIONS.get(name, ())]


ON_A_STEM = {"mmoe": ["architecture.from_stage=1"], "dselect_k": ["architecture.from_stage=1"]}


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name in options("architecture") for kind in KINDS_OF.get(name, ALL)]
)
def test_trains_and_goes_on_to_the_last_bit(name, kind):
    goes_on(configuration(*setting(name, SETTING), *KINDS[kind]))


# What each option is compared with: it changes how the numbers are found, and nothing else, or rounding alone.
WAYS = {
    "compile": (["trainer.compile=true"], 1e-5),
    "bf16": (["trainer.precision=bf16"], 2e-2),
    "fp16": (["trainer.precision=fp16"], 5e-3),
    "average": (["trainer.ema=0.5"], 0.0),
    "checked": (["conflict.every=1", "conflict.audit_every=1"], 0.0),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "name",
    ["mmoe", "ple", "dselect_k", *(pytest.param(n, marks=pytest.mark.slow) for n in ("nddr", "film", "ltb", "lora"))],
)
def test_options_of_the_trainer_leave_the_training_as_it_is(name, way, train_tiny, monkeypatch):
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    overrides, tolerance = WAYS[way]
    common = [*setting(name, PLAIN), *ON_A_STEM.get(name, ())]
    folders = [train_tiny(*common, *own, folder=str(i)) for i, own in enumerate(([], overrides))]
    ends = [checkpoint.load(folder)["model"] for folder in folders]
    difference = max((value - ends[1][n]).abs().max().item() for n, value in ends[0].items())
    assert difference <= tolerance
    said = [{n for n in read_metrics(folder, "train")[0] if n.startswith("architecture/")} for folder in folders]
    assert said[0] == said[1] and (len(said[0]) > 6) != (name in SILENT)


# What an architecture's YAML has to choose from, beside its defaults; lora's other layers need a transformer.
OTHER = {
    "nddr": [["same=1", "other=0"], ["same=0.5", "other=0.5"]],
    "film": [[]],
    "ltb": [["first_temperature=1", "last_temperature=1"], ["warm_up=0"], ["warm_up=0.5"]],
}
OTHER_OF_LORA = [
    ["shared_rank=0"], ["task_rank=0"], ["scale=1", "dropout=0"], ["targets=[qkv]"],
    ["targets=[fc1,proj]", "task_rank=0"], ["trained=[]"], ["trained=[norm,cls_token]"],
]  # fmt: skip
TRIALS = [(name, on, own) for name, rows in OTHER.items() for own in rows for on in ("convnet", "tiny_resnet")]
TRIALS += [("lora", "vit_tiny", own) for own in OTHER_OF_LORA]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "backbone", "chosen"),
    TRIALS,
    ids=lambda value: value if isinstance(value, str) else ",".join(value) or "defaults",
)
def test_other_values_of_its_options_train(name, backbone, chosen, train_tiny):
    small = ["backbone.name=test_vit"] if backbone == "vit_tiny" else []
    own = [f"architecture={name}", f"backbone={backbone}", *small, *(f"architecture.{text}" for text in chosen)]
    folder = train_tiny(*own, "data.image_size=32", "trainer.log_every=1", "device=cpu")
    assert all(torch.isfinite(torch.tensor(row["loss/total"])) for row in read_metrics(folder, "train"))
    assert len(read_metrics(folder, "train")) == 4


@pytest.mark.parametrize("name", options("architecture"))
def test_one_task_alone(name, train_tiny):
    """What an architecture's capacity is worth without sharing."""
    folder = train_tiny(*setting(name, PLAIN), "tasks=[left]")
    assert {n for n in read_metrics(folder, "train")[-1] if n.startswith("loss/")} == {"loss/left", "loss/total"}


@pytest.mark.parametrize("name", sorted({*options("architecture")} - {"mtan", "nddr"}))  # these normalise by pieces
def test_a_large_batch_in_pieces_is_the_large_batch(name, train_tiny):
    strategy = ["strategy=detached"] if name in KINDS_OF else ["strategy=mgda"]
    common = [*setting(name, PLAIN), *strategy]
    pieces = ["data.batch_size=4", "trainer.accumulate_grad_batches=2", "trainer.accumulate=exact"]
    whole, parts = (train_tiny(*common, *own, folder=str(i)) for i, own in enumerate(([], pieces)))
    ends = [checkpoint.load(folder)["model"] for folder in (whole, parts)]
    for n, value in ends[0].items():
        torch.testing.assert_close(ends[1][n], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", options("architecture"))
def test_tasks_with_inputs_of_their_own(name, tmp_path):
    own = [f"architecture={name}", *TRANSFORMER.get(name, ())]
    cfg = load(["data=office", "data.batch_size=2", "device=cpu", "optimizer=sgd", *own])
    office.make_fixture(tmp_path, sizes=dict.fromkeys(cfg.data.domains, (4, 2, 2)))
    cfg.data.root, cfg.data.image_size, cfg.backbone.pretrained = str(tmp_path), 32, False
    parts, state = build(cfg)
    inputs, targets = next(iter(Batches(parts.data.train, sequential(2, 2), seed=0)))
    result = state.strategy.step(state.model.train(), state.tasks, inputs, targets, measure=True)
    assert list(result.losses) == [task.name for task in state.tasks] and result.space == "features_sum"
    assert result.gram.isfinite().all() and all(
        p.grad is not None for p in state.model.backbone.parameters() if p.requires_grad
    )
