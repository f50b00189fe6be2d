"""The command line for some of a run's tasks: override by override, and one that is built."""

import shlex
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from mtl.config import load
from mtl.config.build import build
from mtl.errors import ConfigError
from mtl.report.group_command import group_command
from mtl.report.runs import Run

CONFIG = {
    "data": {"targets": {"left": "class", "sum": "number"}},
    "heads": {"left": {}, "right": {}, "sum": {}},
    "losses": {"left": {}, "right": {}, "sum": {"weight": 2}},
    "weighting": {"_target_": "Static", "weights": {"left": 1.0, "sum": 2.0}, "preference": [1, 2, 3]},
    "strategy": {"scale": "tasks", "primary": "sum", "several": ["left", "sum"], "rule": {"preference": {"sum": 2.0}}},
    "trainer": {"monitor": "loss/left", "mode": "min"},
}


def run_of(*overrides, **config):
    return Run(Path(), "run", config=CONFIG | config, overrides=list(overrides))


def words(run, *group):
    line, left_out = group_command(run, group)
    return [word for word in shlex.split(line)[1:] if not word.startswith(("tasks=", "conflict."))], left_out


NOTHING = {"weighting": {}, "strategy": {}}  # no study's file says something of a task


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("weighting.weights.sum=2", None),
        ("+weighting.weights.sum=2", None),
        ("++strategy.rule.preference.sum=2", None),
        ("losses.sum.weight=2", None),
        ("heads.sum.out_features=3", None),
        ("strategy.primary=sum", None),
        ("weighting.weights={left:1.0,sum:2.0}", "weighting.weights={left:1.0}"),
        ("+weighting.preference=[1,2,3]", "+weighting.preference=[1,2]"),
        ("strategy.several=[left,sum]", "strategy.several=[left]"),
        ("weighting.weights.left=1.0", "weighting.weights.left=1.0"),
        ("data.targets.sum=number", "data.targets.sum=number"),
        ("strategy.scale=tasks", "strategy.scale=tasks"),
        ("trainer.monitor=loss/left", "trainer.monitor=loss/left"),
        ("name=sum", "name=sum"),
        ("losses=digits", "losses=digits"),
        ("+losses.sum.weight=2", "+losses.sum.weight=2"),  # whose head a study's file has: they must name the same
    ],
)  # fmt: skip
def test_an_override_of_another_task_is_left_out_and_told(override, expected):
    kept, left_out = words(run_of(override), "left", "right")
    assert [word for word in kept if not word.startswith("~")] == ([] if expected is None else [expected])
    assert left_out == ([] if expected == override else [override])
    assert words(run_of(override, **NOTHING, heads={"left": {}, "right": {}}), "left", "right") == ([override], [])


def test_a_head_and_its_loss_that_were_added_go_together():
    added = ["+head@heads.sum=linear", "+losses.sum._target_=torch.nn.CrossEntropyLoss"]
    assert words(run_of(*added, **NOTHING), "left") == ([], added)
    assert words(run_of(*added, **NOTHING), "left", "sum") == (added, [])
    assert words(run_of(*added, **NOTHING), "sum") == (added, [])


def test_what_a_study_says_of_another_task_is_deleted():
    kept, left_out = words(run_of(), "left", "right")
    assert kept == ["~strategy.rule.preference.sum", "~weighting.weights.sum"] and left_out == []
    assert words(run_of("weighting.weights.sum=2"), "left")[0] == ["~strategy.rule.preference.sum"]
    assert words(run_of(), "left", "sum") == ([], [])


def test_a_metric_of_another_task_is_not_monitored_nor_its_direction_kept():
    chosen = ["trainer.monitor=sum/accuracy", "trainer.mode=max"]
    monitored = {"trainer": {"monitor": "sum/accuracy", "mode": "max"}} | NOTHING
    assert words(run_of(*chosen, **monitored), "left") == ([], chosen)
    assert words(run_of(*chosen, **monitored), "sum") == (chosen, [])


def test_the_line_is_one_that_can_be_built():
    overrides = [
        "+experiment=grouping", "weighting=static", "+weighting.weights.sum=0.5", "strategy=epo",
        "+strategy.rule.preference={left:2,sum:1}", "trainer.monitor=sum/accuracy", "device=cpu",
    ]  # fmt: skip
    run = Run(Path(), "run", config=OmegaConf.to_container(load(overrides), resolve=False), overrides=overrides)
    line, left_out = group_command(run, ["left", "right"])
    _, state = build(load(shlex.split(line)[1:]))
    assert [task.name for task in state.tasks] == ["left", "right"]
    assert left_out == [overrides[i] for i in (2, 4, 5)]
    with pytest.raises(ConfigError, match=r"weights\.sum names no task"):  # negative control
        build(load([*overrides[:3], "tasks=[left,right]", "device=cpu"]))
