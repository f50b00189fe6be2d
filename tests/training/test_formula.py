"""Formulas of metrics and Δm as the monitored metric."""

import json
import math
from types import SimpleNamespace

import pytest
from torch import nn
from torchmetrics import MeanAbsoluteError
from torchmetrics.classification import MulticlassAccuracy

from mtl.errors import ConfigError
from mtl.runs.files import read_metrics
from mtl.tasks import Task
from mtl.training.formula import Formula
from mtl.training.monitor import Monitor

TASKS = [
    Task("left", nn.MSELoss(), {"accuracy": MulticlassAccuracy(3), "accuracy_top": MulticlassAccuracy(3)}),
    Task("far-depth", nn.MSELoss(), {"abs_err": MeanAbsoluteError()}),
]
VALUES = {
    "left/accuracy": 0.8,
    "left/accuracy_top": 0.9,
    "far-depth/abs_err": 0.25,
    "loss/left": 1.5,
    "loss/total": 2.0,
}


def monitor(text, mode=None, **more):
    return Monitor.from_config(SimpleNamespace(monitor=text, mode=mode, baselines=None, **more), TASKS)


@pytest.mark.parametrize(
    ("text", "value", "mode"),
    [
        ("2*left/accuracy - far-depth/abs_err", 2 * 0.8 - 0.25, "max"),
        ("far-depth/abs_err - 2*left/accuracy", 0.25 - 1.6, "min"),
        ("(left/accuracy + left/accuracy_top) / 2", 0.85, "max"),
        ("-left/accuracy", -0.8, "min"),
        ("loss/left*-3", -4.5, "max"),
        ("val/left/accuracy*1e1 - val/loss/left/4", 8 - 0.375, "max"),
        ("1 - (1 - left/accuracy)", 0.8, "max"),
    ],
)
def test_a_formula_and_its_direction(text, value, mode):
    found = monitor(text)
    assert found.complete(VALUES)["monitor"] == pytest.approx(value)
    assert (found.name, found.mode) == ("monitor", mode)
    assert found.value(found.complete(VALUES)) == pytest.approx(value)
    other = {"max": "min", "min": "max"}[mode]
    with pytest.raises(ConfigError, match=rf"^trainer.mode={other}: .* use trainer.mode={mode}, or leave it null\.$"):
        monitor(text, other)


@pytest.mark.parametrize("text", ["left/accuracy + loss/left", "left/accuracy / loss/left", "left/accuracy*loss/left"])
def test_metrics_that_pull_apart_need_a_mode(text):
    with pytest.raises(
        ConfigError, match=r"do not all pull the same way.*; give trainer.mode=min or trainer.mode=max\.$"
    ):
        monitor(text)
    assert monitor(text, "min").mode == "min"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("2*left/acuracy", "left/acuracy is not a metric of this run; did you mean left/accuracy."),
        ("2*left/accuracy_to", "left/accuracy_to is not a metric of this run; did you mean left/accuracy_top."),
        ("left/accuracy / 0", "it divides by zero."),
        ("left/accuracy / (1 - 1)", "it divides by zero."),
        ("2*(left/accuracy", "it is no formula; accepted are metrics, numbers, + - * / and brackets."),
        ("left/accuracy ** 2", "it is no formula; accepted are metrics, numbers, + - * / and brackets."),
        ("max(left/accuracy, 1)", "max is not a metric of this run; accepted: "),
        ("__import__('os').system('touch x') + left/accuracy", "__import__ is not a metric of this run; accepted: "),
        ("(1).__class__ + left/accuracy", "it is no formula; accepted are metrics, numbers, + - * / and brackets."),
        ("[left/accuracy][0] + 1", "it is no formula; accepted are metrics, numbers, + - * / and brackets."),
        ("'a'*3 + left/accuracy", "a is not a metric of this run; accepted: "),
    ],
)
def test_a_mistake_is_one_sentence(text, words):
    with pytest.raises(ConfigError) as error:
        monitor(text)
    assert str(error.value).startswith(f"trainer.monitor={text}: {words}".removesuffix("."))


def test_an_evaluation_at_which_it_divides_by_zero_has_no_value():
    formula = Formula("loss/left / (left/accuracy - left/accuracy_top)", dict.fromkeys(VALUES, "min"))
    assert formula.value(VALUES) == pytest.approx(-15)
    assert math.isnan(formula.value(VALUES | {"left/accuracy": 0.9}))
    assert math.isnan(formula.value({"loss/left": 1.0}))


def test_a_run_by_a_formula(train_tiny, capsys):
    folder = train_tiny("trainer.monitor='left/accuracy - 0.5*loss/right'", "trainer.val_every=1", "trainer.patience=3")
    rows = read_metrics(folder, "val")
    values = [row["left/accuracy"] - 0.5 * row["loss/right"] for row in rows]
    assert [row["monitor"] for row in rows] == pytest.approx(values)
    best = json.loads((folder / "summary.json").read_text())["best"]
    assert best["monitor"] == pytest.approx(max(values)) and best["step"] == rows[values.index(max(values))]["step"]
    assert (best["metric"], best["mode"]) == ("monitor", "max")


def test_a_run_by_delta_m(train_tiny, tmp_path):
    for task in ("left", "right"):
        for seed in (0, 1):
            train_tiny(f"tasks=[{task}]", f"seed={seed}", folder=f"singles/{task}{seed}")
    single = {
        task: [
            json.loads((tmp_path / f"singles/{task}{seed}/summary.json").read_text())["best"]["val"][f"{task}/accuracy"]
            for seed in (0, 1)
        ]
        for task in ("left", "right")
    }
    folder = train_tiny("trainer.monitor=delta_m", f"trainer.baselines={tmp_path}/singles", "trainer.val_every=1")
    rows = read_metrics(folder, "val")
    for row in rows:
        changes = [-100 * (row[f"{t}/accuracy"] / (sum(b) / 2) - 1) for t, b in single.items()]
        assert row["delta_m"] == pytest.approx(sum(changes) / 2)
    best = json.loads((folder / "summary.json").read_text())["best"]
    assert best["monitor"] == min(row["delta_m"] for row in rows) and best["mode"] == "min"


def test_delta_m_without_its_baselines(tmp_path):
    with pytest.raises(ConfigError, match=r"^trainer.monitor=delta_m needs trainer.baselines, the folder of"):
        monitor("delta_m")
    with pytest.raises(
        ConfigError, match=r"has no finished run of the task left alone .*; make one with tasks=\[left\]\.$"
    ):
        Monitor.from_config(SimpleNamespace(monitor="delta_m", mode=None, baselines=str(tmp_path)), TASKS)
