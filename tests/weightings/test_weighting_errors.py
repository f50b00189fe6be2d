"""Hyper-parameters out of range: one sentence with name, value and what is accepted."""

import re

import pytest
from support.weighting_zoo import TASKS

from mtl import weightings
from mtl.config import load
from mtl.config.instantiate import make

MISTAKES = [
    ("DWA", {"steps_per_epoch": 4, "temperature": 0}, "temperature=0 must be above 0."),
    ("DWA", {"steps_per_epoch": 4, "temperature": float("nan")}, "temperature=nan must be above 0."),
    ("DWA", {"steps_per_epoch": 0}, "steps_per_epoch=0 must be 1 or more."),
    ("Random", {"seed": -1}, "seed=-1 must be from 0 to 2^63 - 1."),
    ("UW", {"initial": float("inf")}, "initial=inf must be a finite number."),
    ("IMTLL", {"initial": float("nan")}, "initial=nan must be a finite number."),
    ("FAMO", {"lr": 0}, "lr=0 must be above 0."),
    ("FAMO", {"gamma": -0.1}, "gamma=-0.1 must be 0 or more."),
    ("FAMO", {"min_losses": {"left": 1.0}}, "min_losses.left names no task; the tasks are a, b, c."),
    ("FAMO", {"min_losses": {"a": float("inf")}}, "min_losses.a=inf must be a finite number."),
    ("STCH", {"steps_per_epoch": 4, "mu": -1}, "mu=-1 must be above 0."),
    ("STCH", {"steps_per_epoch": 4, "warmup_epochs": -1}, "warmup_epochs=-1 must be 0 or more."),
    ("STCH", {"steps_per_epoch": 4, "preference": {"left": 2}}, "preference.left names no task; accepted: a, b, c."),
    ("STCH", {"steps_per_epoch": 0}, "steps_per_epoch=0 must be 1 or more."),
    ("STCH", {"steps_per_epoch": 4, "epsilon": 0}, "epsilon=0 must be above 0."),
    ("GradNorm", {"alpha": -1}, "alpha=-1 must be 0 or more."),
    ("GradNorm", {"lr": float("inf")}, "lr=inf must be above 0."),
    ("GO4Align", {"groups": 0}, "groups=0 must be 1 or more."),
    ("GO4Align", {"beta": -1}, "beta=-1 must be 0 or more."),
    ("GO4Align", {"epsilon": 0}, "epsilon=0 must be above 0."),
    ("PBI", {"theta": -1}, "theta=-1 must be 0 or more."),
    ("COSMOS", {"lamda": float("nan")}, "lamda=nan must be 0 or more."),
    ("Tchebycheff", {"preference": {"left": 1.0}}, "preference.left names no task; accepted: a, b, c."),
    ("Tchebycheff", {"preference": {"a": 0}}, "preference.a=0 must be a finite number above 0."),
    ("PBI", {"preference": {"b": -2.0}}, "preference.b=-2.0 must be a finite number above 0."),
    ("COSMOS", {"preference": {"b": "much"}}, "preference.b=much must be a finite number above 0."),
    ("COSMOS", {"preference": [1, 2]}, "preference has 2 numbers, but there are 3 tasks: a, b, c."),
    ("Tchebycheff", {"reference": {"left": 1.0}}, "reference.left names no task; the tasks are a, b, c."),
]


@pytest.mark.parametrize(("name", "arguments", "sentence"), MISTAKES, ids=[f"{n}-{s}" for n, _, s in MISTAKES])
def test_a_mistake_is_one_sentence(name, arguments, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        getattr(weightings, name)(TASKS, **arguments)


@pytest.mark.parametrize("name", ["Log", "GLS"])
def test_epsilon_must_be_positive(name):
    with pytest.raises(ValueError, match=r"^epsilon=-1 must be above 0\.$"):
        getattr(weightings, name)(epsilon=-1)


@pytest.mark.parametrize("tasks", [[], ["a", "a"]])
def test_tasks_must_have_names_of_their_own(tasks):
    with pytest.raises(ValueError, match="must be one or more different names"):
        weightings.Random(tasks)


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ("random", "Random"),
        ("dwa", "DWA"),
        ("uw", "UW"),
        ("imtl_l", "IMTLL"),
        ("log", "Log"),
        ("gls", "GLS"),
        ("famo", "FAMO"),
        ("stch", "STCH"),
        ("gradnorm", "GradNorm"),
        ("go4align", "GO4Align"),
        ("uw_so", "UWSO"),
        ("tchebycheff", "Tchebycheff"),
        ("pbi", "PBI"),
        ("cosmos", "COSMOS"),
    ],
)
def test_every_option_builds_its_weighting_with_what_the_build_offers(option, name):
    node = load([f"weighting={option}"]).weighting
    weighting = make("weighting", node, tasks=TASKS, steps_per_epoch=7, seed=5)
    assert type(weighting).__name__ == name
    if name in ("DWA", "STCH"):
        assert weighting.epoch_means.steps_per_epoch == 7
    if name == "Random":
        assert weighting.generator.initial_seed() == 5
