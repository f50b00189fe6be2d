"""Every shipped configuration is built; every mistake is one sentence with its key."""

import importlib

import pytest
import torch
from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf
from support.composing import configuration, options
from torch import nn

from mtl.config import CONF, check, load
from mtl.config.build import build
from mtl.config.schema import keys_that_are
from mtl.config.table_heads import take_targets
from mtl.data.loader import Batches, sequential
from mtl.errors import ConfigError

THIRD = [
    "+head@heads.parity=linear",
    "heads.parity.out_features=2",
    "+losses.parity._target_=torch.nn.CrossEntropyLoss",
]


# The data of the backbones that do not read images.
DATA = {
    "theta": ["data=toy"], "causal_transformer": ["data=stdlib"], "tabular": ["data=table"], "text": ["data=paws_x"],
    "table_text": ["data=table", "data.kinds={city: text}"], "mpnn": ["data=qm9"],
    "ft_transformer": ["data=table", "backbone.blocks=1"],
}  # fmt: skip


def built(*overrides):
    return build(load(["data.batch_size=4", "device=cpu", "trainer.max_steps=2", *overrides]))


def one_step(parts, state):
    inputs, targets = batch = next(iter(Batches(parts.data.train, sequential(4, 4), seed=0)))
    if state.strategy.draws > 1:
        state.strategy.look(state.engine, [batch] * state.strategy.draws, lr=1e-3)
    result = state.strategy.step(state.model, state.tasks, inputs, targets, measure=True)
    assert all(torch.isfinite(loss) for loss in result.losses.values())
    state.optimizer.step()
    return result


@pytest.mark.parametrize("group", ["weighting", "strategy", "optimizer", "scheduler", "trainer", "tracker"])
def test_every_option_is_built_and_takes_a_step(group):
    needs = {"rotograd": ["architecture=rotograd"], "pareto_manifold": ["backbone=mlp"]}
    for option in options(group):
        one_step(*built(f"{group}={option}", *needs.get(option, ())))


# dataset takes one of the user's: tests/data/test_dataset.py
@pytest.mark.parametrize("data", [data for data in options("data") if data != "dataset"])
def test_every_data_set_alone_is_a_run(data, tmp_path):
    """No other group is named: backbone, heads and losses fit."""
    one_step(*build(of_data(tmp_path, f"data={data}")))


def of_data(folder, *overrides):
    """The configuration with the fixture of its data set, where it takes files."""
    cfg = load(["device=cpu", *overrides])
    if "root" in list(cfg.data):  # also where its value is missing
        domains = {"sizes": dict.fromkeys(cfg.data.domains, (4, 2, 2))} if "domains" in cfg.data else {}
        importlib.import_module(cfg.data._target_.rpartition(".")[0]).make_fixture(folder / "data", **domains)
        cfg.data.root = str(folder / "data")
    own = {"targets": ["basket", "amount", "again"], "files": {"bonn": "bonn.csv", "ulm": "ulm.csv"}, "target": "price"}
    for key, value in own.items():
        if OmegaConf.is_missing(cfg.data, key):
            cfg.data[key] = value
    take_targets(cfg)
    if "image_size" in cfg.data:
        cfg.data.image_size = min(cfg.data.image_size, 64)  # a step on the papers' sizes takes twenty seconds
    return cfg


def test_data_that_are_no_images_bring_another_backbone_unless_one_is_chosen():
    choices = {
        data: load([f"data={data}"]).backbone._target_.rpartition(".")[2]
        for data in ("digits", "stdlib", "toy", "qm9", "table")
    }
    assert choices == {
        "digits": "Timm", "stdlib": "CausalTransformer", "toy": "Theta", "qm9": "MPNN", "table": "Tabular",
    }  # fmt: skip
    assert load(["data=stdlib", "backbone=mlp"]).backbone == load(["backbone=mlp"]).backbone
    assert load(["data=toy", "~backbone", "+backbone._target_=mine.Backbone"]).backbone == {"_target_": "mine.Backbone"}
    with pytest.raises(ConfigError, match=r"^backbone: cannot take inputs of shape \[2, 128\]"):
        build(load(["data=stdlib", "backbone=tiny_resnet"]))
    with pytest.raises(ConfigError, match=r"^backbone: mtl.backbones.CausalTransformer needs vocabulary, which"):
        build(load(["backbone=causal_transformer"]))


@pytest.mark.parametrize("backbone", options("backbone"))
def test_every_backbone_takes_a_step(backbone, tmp_path):
    one_step(*build(of_data(tmp_path, *DATA.get(backbone, []), f"backbone={backbone}")))


STUDY = "experiment/digits_strategies"


@pytest.mark.parametrize("arm", options(f"{STUDY}/arm"))
def test_every_arm_of_the_study_takes_a_step(arm):
    parts, state = built("+experiment=digits_strategies", f"+{STUDY}/arm={arm}", "backbone=mlp")
    result = one_step(parts, state)
    assert list(result.losses) == ([arm.removeprefix("single_")] if "single" in arm else ["left", "right", "sum"])


def test_the_study_has_400_runs():
    """14 arms and six points of static weights, each with four learning rates and five seeds."""
    jobs = jobs_of("+experiment=digits_strategies") + jobs_of("+experiment=digits_strategies/static")
    assert len({*map(tuple, jobs)}) == 400
    job = next(job for job in jobs if any("sum:1.8" in override for override in job))
    assert load(job).weighting == {
        "_target_": "mtl.weightings.Static", "weights": {"left": 0.6, "right": 0.6, "sum": 1.8},
    }  # fmt: skip


STUDIES = sorted({file.parent.parent.name for file in CONF.glob("experiment/*/arm/*.yaml")})


@pytest.mark.parametrize("study", STUDIES)
def test_what_an_arm_says_counts_in_a_sweep_of_its_study(study):
    """Hydra puts the sweeper's params before the command line, and the last file of a group wins."""
    arm = f"+experiment/{study}/arm"
    for job in jobs_of(f"+experiment={study}"):
        keys = [override.partition("=")[0] for override in job]
        assert keys.index("+experiment") < keys.index(arm) and keys.count("+experiment") == 1


def test_an_arm_before_its_study_would_lose(tmp_path):
    (tmp_path / "experiment" / "mine" / "arm").mkdir(parents=True)
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\ntrainer: {max_steps: 3}\n")
    (tmp_path / "experiment" / "mine" / "arm" / "long.yaml").write_text(
        "# @package _global_\ntrainer: {max_steps: 5}\n"
    )
    line = [f"hydra.searchpath=[file://{tmp_path}]", "+experiment=mine", "+experiment/mine/arm=long"]
    assert load(line).trainer.max_steps == 5
    assert load([line[0], line[2], line[1]]).trainer.max_steps == 3


def jobs_of(experiment):
    """The overrides of each job of a sweep."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        params = loader.load_configuration("config", [experiment], RunMode.MULTIRUN).hydra.sweeper.params
        texts = [*(f"{key}={value}" for key, value in params.items()), experiment]  # in the sweeper's order
        overrides = OverridesParser.create(config_loader=loader).parse_overrides(texts)
        (jobs,) = BasicSweeper.split_arguments(overrides, None)
        return jobs


@pytest.mark.parametrize("group", ["strategy", "weighting"])
def test_what_the_tests_compose_by_themselves_is_what_hydra_composes(group):
    for option in options(group):
        assert configuration(f"{group}={option}") == load([f"{group}={option}"])


def test_one_head_of_a_set_alone_sees_the_same_data():
    whole, alone = built("seed=3"), built("seed=3", "tasks=[right]")
    assert list(alone[1].model.heads) == ["right"] and [task.name for task in alone[0].tasks] == ["right"]
    shared = zip(whole[1].model.shared_parameters(), alone[1].model.shared_parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in shared)  # paired by seed: both start from the same trunk
    a, b = (parts.data.train.batch([0, 1, 2], 0)[0] for parts, _ in (whole, alone))
    assert torch.equal(a, b)
    assert list(built("tasks=[right,left]")[1].model.heads) == ["left", "right"]  # in the set's own order


@pytest.mark.parametrize(
    ("features", "head"), [("pooled", "mlp"), ("tokens", "attention_pool"), ("pyramid", "pyramid_pool")]
)
@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_every_head_on_its_kind_of_features(features, head, backbone):
    overrides = [f"backbone.name={backbone}"]
    if head == "attention_pool" and backbone == "test_resnet":
        overrides.append("data.image_size=64")
    heads = [f"head@heads.{side}={head}" for side in ("left", "right")]
    parts, state = built(*overrides, *heads)
    assert one_step(parts, state).gram.shape == (2, 2)
    assert state.model.backbone.features == features


def test_no_head_option_is_left_out():
    elsewhere = ["deeplab", "fpn", "next_token"]  # test_heads.py, test_stdlib.py
    assert options("head") == sorted(["attention_pool", "linear", "mlp", "pyramid_pool", *elsewhere])


def test_heads_and_losses_follow_the_data():
    text = (CONF / "config.yaml").read_text()
    assert "heads: ${data}" in text and "losses: ${data}" in text
    assert set(options("heads")) >= set(options("data")) and set(options("losses")) >= set(options("data"))


def test_null_for_an_argument_that_another_class_does_not_have_is_no_argument():
    parts, _ = built("+losses.left.invalid=null", "+heads.left.extra=null")
    assert type(parts.tasks[0].loss) is torch.nn.CrossEntropyLoss
    with pytest.raises(ConfigError, match=r"losses.left.invalid is not an argument of"):
        built("+losses.left.invalid=0")


def test_class_weights_are_a_list_of_numbers():
    parts, _ = built("+losses.left.weight=[1,2,1,1,1,1,1,1,1,1]")
    assert parts.tasks[0].loss.weight.tolist() == [1, 2, 1, 1, 1, 1, 1, 1, 1, 1]
    with pytest.raises(ConfigError, match=r"^losses.left: "):
        built("+losses.left.weight=[1,two]")


def test_a_third_head_from_the_command_line():
    parts, state = built(*THIRD)
    assert list(state.model.heads) == ["left", "right", "parity"]
    assert state.model.heads["parity"].in_features == 96
    assert one_step(parts, state).gram.shape == (3, 3)


def test_a_head_can_be_any_module_also_a_lazy_one():
    _, state = built("~heads.right", "~losses.right", "heads.left._target_=torch.nn.LazyLinear")
    assert isinstance(state.model.heads["left"], nn.Linear) and list(state.model.heads) == ["left"]


def test_backbone_and_heads_have_learning_rates_of_their_own():
    _, state = built("optimizer.groups.heads.lr=0.5", "optimizer.groups.backbone.lr=0.1", "scheduler=constant")
    (shared, others) = state.optimizer.param_groups
    assert shared["lr"] == 0.1 and others["lr"] == 0.5
    assert shared["weight_decay"] == others["weight_decay"] == 0.01
    decay = built("+optimizer.groups.heads.weight_decay=0.2")[1].optimizer.param_groups[1]["weight_decay"]
    assert decay == 0.2
    assert len(shared["params"]) == len(list(state.model.shared_parameters()))
    assert len(others["params"]) == 4
    _, state = built("optimizer.lr=0.5", "scheduler=constant")
    assert {group["lr"] for group in state.optimizer.param_groups} == {0.5}


def test_one_loss_is_every_tasks():
    _, state = built(*THIRD[:2], "~losses", "+losses._target_=torch.nn.CrossEntropyLoss", "+losses.label_smoothing=0.1")
    assert [task.loss.label_smoothing for task in state.tasks] == [0.1] * 3
    assert len({id(task.loss) for task in state.tasks}) == 3


class ReadsTokens(nn.Linear):
    """A head that says what it reads."""

    reads = "tokens"


class Gaps(nn.Module):
    """A parameter that is a part of a larger tensor's rows."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 2 * 32 * 32)[:, ::2])

    def forward(self, images):
        return images.flatten(1)[:, : self.weight.shape[1]] @ self.weight.T


def test_torchs_optimizers_are_fused_where_nothing_else_is_wished():
    def fused(*options):
        return built(*options)[1].optimizer.defaults.get("fused")

    assert fused() and fused("optimizer=adam") and fused("optimizer=sgd")
    assert not fused("+optimizer.fused=false") and not fused("+optimizer.foreach=true")
    assert not fused("optimizer=lamb") and not fused("optimizer._target_=torch.optim.RMSprop")


def test_a_fused_optimizer_needs_parameters_without_gaps():
    options = ["~backbone", "+backbone._target_=tests.config.test_config.Gaps", "optimizer=sgd"]
    with pytest.raises(ConfigError, match=r"^optimizer.fused=true needs .* unlike backbone.weight; use false"):
        build(load([*options, "+optimizer.fused=true"]))
    _, state = build(load(options))
    assert not state.optimizer.defaults["fused"]


def test_heads_share_a_layer_and_the_optimizer_has_it_once():
    heads = ["head@heads.left=mlp", "head@heads.right=mlp"]
    parts, state = built(*heads, "share=['2']", "scheduler=constant")
    left, right = state.model.heads.values()
    assert left[2] is right[2] and left[0] is not right[0]
    assert len(state.optimizer.param_groups[1]["params"]) == 2 + 2 + 2
    one_step(parts, state)
    _, again = built(*heads, "share=['2']", "scheduler=constant", "seed=1")
    again.load_state_dict(state.state_dict())
    assert again.model.heads["right"][2] is again.model.heads["left"][2]
    assert torch.equal(again.model.heads["right"][2].weight, left[2].weight)


def test_the_scheduler_gets_the_length_of_the_run():
    _, state = built("trainer.max_steps=50")
    assert state.scheduler.total_steps == 50
    _, state = built("trainer.max_steps=null", "trainer.max_epochs=2", "trainer.limit_train_batches=7")
    assert state.scheduler.total_steps == 14


def test_the_same_seed_builds_the_same_model():
    first, second, other = (built(f"seed={seed}")[1].model.state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_what_may_change_on_resume_and_what_matters_to_the_result():
    changeable, irrelevant = set(keys_that_are("changeable")), set(keys_that_are("irrelevant"))
    assert {"name", "tracker", "data.on_error", "trainer.max_steps", "trainer.keep"} <= changeable
    assert not {"seed", "data", "trainer", "trainer.precision", "trainer.val_every", "strategy"} & changeable
    assert irrelevant - changeable == {"seed"} and "trainer.max_steps" not in irrelevant
    assert set(keys_that_are("length")) == {"trainer.max_steps", "trainer.max_epochs", "trainer.patience"} < changeable


MISTAKES = [
    (["+trainer.max_step=3"], "trainer.max_step is not a key of the configuration; did you mean max_steps."),
    (["+lr=3"], "lr is not a key of the configuration; accepted: data, backbone,"),
    (["+backbone.nam=x"], "backbone.nam is not an argument of mtl.backbones.Timm; did you mean name."),
    (["optimizer.lr=abc"], "optimizer.lr=abc has the wrong type: torch.optim.AdamW takes a number"),
    (["optimizer.groups.backbone.lr=abc"], "optimizer.groups.backbone.lr=abc has the wrong type"),
    (["+optimizer.groups.heads.lrr=1"], "optimizer.groups.heads.lrr is not an argument of torch.optim.AdamW"),
    (["+optimizer.groups.head.lr=1"], "optimizer.groups.head names no part of the model; did you mean heads."),
    (["+optimizer.groups.left.lr=1"], "optimizer.groups.left names no part of the model; accepted: backbone, heads."),
    (["optimizer.groups.heads=1"], "optimizer.groups.heads=1 must be a mapping, as in optimizer.groups.heads.lr=…."),
    (["optimizer.lr=-1"], "optimizer.lr=-1 must be 0 or more"),
    (["optimizer.groups.backbone.lr=-1"], "optimizer.groups.backbone.lr=-1 must be 0 or more."),
    (["scheduler.warmup_steps=x"], "scheduler.warmup_steps=x has the wrong type"),
    (["trainer.max_steps=-5"], "trainer.max_steps=-5 must be 1 or more."),
    (["trainer.log_every=0"], "trainer.log_every=0 must be 1 or more."),
    (["trainer.num_workers=-1"], "trainer.num_workers=-1 must be 0 or more."),
    (["trainer.grad_clip_norm=0"], "trainer.grad_clip_norm=0.0 must be above 0."),
    (["conflict.every=0"], "conflict.every=0 must be 1 or more."),
    (["conflict.tolerance=-0.1"], "conflict.tolerance=-0.1 must be 0 or more."),
    (["conflict.affinity_every=-1"], "conflict.affinity_every=-1 must be 0 or more."),
    (
        ["conflict.affinity_every=5", "tasks=[left]"],
        "conflict.affinity_every=5 needs two tasks or more, and left is alone: use conflict.affinity_every=0.",
    ),
    (
        ["conflict.affinity_every=5", "conflict.audit_every=9", "trainer.devices=2"],
        "conflict.affinity_every=5 with conflict.audit_every=9 takes a step on each task alone, which one process can "
        "and these 2 cannot: use conflict.audit_every=null.",
    ),
    (
        [
            "conflict.affinity_every=5",
            "conflict.audit_every=9",
            "trainer.accumulate=exact",
            "trainer.accumulate_grad_batches=2",
        ],
        "conflict.affinity_every=5 with conflict.audit_every=9 takes a step on each task alone, with the whole batch "
        "in one graph: use conflict.audit_every=null.",
    ),
    (["conflict.tolerance=1"], "conflict.tolerance=1.0 must be from 0 to below 1: it is a cosine."),
    (["trainer.max_steps=null"], "trainer.max_steps and trainer.max_epochs are both null"),
    (["data.batch_size=0"], "data: batch_size=0 must be 1 or more."),
    (["data.image_size=1.5"], "data.image_size=1.5 has the wrong type: mtl.data.digits.Digits takes int."),
    (["data.offset=9"], "data: offset=9 must be from 0"),
    (["heads.left.out_features=0"], "heads.left (Linear) gives an empty prediction of shape [2, 0]"),
    (["heads.left.out_features=-3"], "heads.left: Trying to create tensor with negative dimension -3"),
    (
        ["heads.left.out_features=ten"],
        "heads.left.out_features=ten has the wrong type: torch.nn.Linear takes int.",
    ),
    (
        ["heads.left.out_features=5"],
        "heads.left.out_features must be 10, the number of classes",
    ),
    (["+head@heads.parity=linear"], "heads.parity.out_features has no value"),
    (["backbone.name=resnet19"], "backbone: name=resnet19 is no timm model; the closest are resnet"),
    (["backbone.features=maps"], "backbone: features=maps must be one of pooled, tokens, pyramid."),
    (["backbone.features=pyramid"], "heads.left: torch.nn.Linear needs in_features, which"),
    (
        ["backbone.features=tokens", "backbone.name=test_vit"],
        "losses.left (CrossEntropyLoss) does not fit heads.left",
    ),
    (
        ["head@heads.left=pyramid_pool", "backbone.features=pooled"],
        "heads.left: mtl.heads.PyramidPool needs channels, which",
    ),
    (["head@heads.left=pyramid_pool"], "heads.right: torch.nn.Linear needs in_features, which"),
    (
        ["head@heads.left=pyramid_pool", "heads.right._target_=tests.config.test_config.ReadsTokens"],
        "heads.left reads pyramid, heads.right reads tokens: a backbone gives one kind of features; choose heads",
    ),
    (
        ["data=scenes", "backbone=mlp"],
        "heads.segmentation: mtl.heads.FPN needs channels, which the configuration does not give",
    ),
    (
        ["+heads.left.in_features=7"],
        "heads.left (Linear) cannot take the backbone's features of shape [2, 96]",
    ),
    (
        ["losses.left._target_=torch.nn.MSELoss"],
        "with output of shape [2, 10] and targets of shape [2]: the targets are classes",
    ),
    (["+losses.left.reduction=none"], "losses.left must give one number, but gives [2]"),
    (["losses.left._target_=torch.nn.NoLoss"], "losses.left._target_=torch.nn.NoLoss cannot be imported"),
    (["~losses.left"], "heads has left, right and losses has right."),
    ([*THIRD[:2]], "heads has left, right, parity and losses has left, right."),
    ([o.replace("parity", "colour") for o in THIRD], "but data has the targets left, right, sum, parity,"),
    (["~heads.left", "~heads.right"], "heads must name at least one task, as in"),
    (
        [o.replace("parity", "type") for o in THIRD[:2]] + ["+losses.type={}"],
        "losses.type must be a mapping with a _target_",
    ),
    (
        ["trainer.monitor=accuracy"],
        "trainer.monitor=accuracy is not a metric of this run; there are loss/total,",
    ),
    (["seed=-1"], "seed=-1 must be from 0 to"),
    (["optimizer.lr=${nope}"], "Interpolation key 'nope' not found"),
    (["optimizer.groups=0.1"], "optimizer.groups=0.1 must be a mapping, as in optimizer.groups.backbone.lr=…."),
    (["strategy=mgda", "strategy.rule=null"], "strategy.rule must be a mapping with a _target_"),
    (
        ["~scheduler", "+scheduler={_target_: timm.scheduler.CosineLRScheduler, t_in_epochs: true}"],
        "scheduler.t_in_epochs=true: schedules count optimizer steps here",
    ),
    (["trainer.grad_clip_norm=nan"], "trainer.grad_clip_norm=nan must be above 0."),
    ([o.replace("parity", "total") for o in THIRD], "heads.total: a task cannot be called total"),
    (
        [
            "~heads.left",
            "+heads.left={_target_: torch.nn.Sequential, _args_: [{_target_: torch.nn.Dropout, inplace: true}]}",
        ],
        "heads.left.0: Dropout(p=0.5, inplace=True) changes the backbone's features, which the other heads read too",
    ),
    (["share=[pool]"], "share=pool: the head of left has only no submodules."),
    (
        ["strategy.token_chunks=2"],
        "strategy.token_chunks=2 needs features that are one tensor [B, T, D] or [B, C, H, W]",
    ),
    (["strategy.token_chunks=0"], "strategy: token_chunks=0 must be 1 or more."),
    (["strategy=mgda", "strategy.token_chunks=x"], "strategy.token_chunks=x has the wrong type"),
    (["strategy=naive", "+strategy.token_chunks=1.5"], "strategy.token_chunks=1.5 has the wrong type"),
    (["+losses._target_=torch.nn.CrossEntropyLoss"], "losses.left is not an argument of torch.nn.CrossEntropyLoss"),
    (["trainer.mode=up"], "trainer.mode=up must be one of min, max, null."),
    (["tracker.mode=on"], "tracker.mode=on must be one of null, online, offline, disabled."),
    (["device=gpu"], "device=gpu must be auto, cpu, cuda, cuda:<number>, xpu, xpu:<number> or mps."),
    (["device=cuda:99"], "device=cuda:99 is not on this machine; there are"),
    (["resume=/nowhere/at/all"], "resume=/nowhere/at/all does not exist"),
    (
        ["weighting=static", "+weighting.weights.lft=1"],
        "weighting: weights.lft names no task; the tasks are left, right.",
    ),
    (["weighting=static", "+weighting.weights.left=-1"], "weighting: weights.left=-1 must be 0 or more."),
    (["tasks=[middle]"], "tasks=[middle] must name tasks of the head set, each once, or be null for all of them; the"),
    (["tasks=[left,left]"], "the head set has left, right."),
    (["tasks=[]"], "tasks=[] must name tasks of the head set"),
    (["weighting=static", "weighting.weights=0.3"], "weighting.weights=0.3 has the wrong type"),
]


@pytest.mark.parametrize(("overrides", "message"), MISTAKES, ids=[" ".join(o)[-60:] for o, _ in MISTAKES])
def test_a_mistake_is_one_sentence_with_its_key(overrides, message):
    with pytest.raises(ConfigError) as caught:
        build(load(overrides))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.lrr=3"], "Key 'lrr'"),
        (["backbone=resnet_18"], "Available options in 'backbone':"),
        (["trainer.max_steps=abc"], "trainer.max_steps"),
        (["data=nothing"], "Available options in 'data':"),
    ],
)
def test_what_hydra_itself_refuses(overrides, message):
    with pytest.raises(HydraException) as caught:
        load(overrides)
    assert message in f"{caught.value}{caught.value.__cause__}"


def test_weights_that_cannot_be_fetched_are_named():
    # HF_HUB_OFFLINE=1 in the tests: the hub's client refuses at once
    with pytest.raises(ConfigError, match="pretrained=true: the weights of resnet18 could not be loaded"):
        built("backbone=resnet18", "backbone.pretrained=true")


def test_a_group_that_is_no_component_is_named():
    cfg = load()
    OmegaConf.set_struct(cfg, False)
    cfg.strategy = "naive"
    with pytest.raises(ConfigError, match="strategy must be a mapping with a _target_"):
        check(cfg)
