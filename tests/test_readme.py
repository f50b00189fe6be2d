"""What the README says is there, is there; its commands compose, its snippets run, its numbers are the studies'."""

import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ValueType
from hydra.errors import HydraException
from torch import nn
from torch.nn import functional as F

import mtl
from mtl.config import check, load
from mtl.jobs.composition import explain

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
COMMANDS = re.findall(r"^ {4,}((?:mtl-|python -m )\S+.*?) *(?:  #.*)?$", README + CONTRIBUTING, re.MULTILINE)
TRAINING = [command for command in COMMANDS if command.startswith("mtl-train")]
MODULES = {
    "mtl-eval": "mtl.evaluate",
    "mtl-predict": "mtl.predict",
    "mtl-export": "mtl.export",
    "mtl-report": "mtl.report.command",
    "mtl-new": "mtl.new",
}


def test_it_is_short_and_has_commands():
    assert len(README.splitlines()) <= 200
    assert len(TRAINING) > 8 and {command.split()[0] for command in COMMANDS} >= {"mtl-report", "mtl-predict", "python"}


@pytest.mark.parametrize("command", TRAINING)
def test_every_training_command_composes(command):
    """A sweep's first job; of a command on the reader's own configurations what is not theirs."""
    words = [word for word in shlex.split(command)[1:] if word not in ("-m", "--help")]
    if "-cd" in words:
        words = [word for word in words if "=" in word and not re.search("mine|tasks=", word)]
    check(load(_first_job(words)))


def _first_job(words):
    """Of each list its first value; an interval, which a search draws from, is left out, and so is the search."""
    for override in OverridesParser.create().parse_overrides(words):
        if not override.is_sweep_override():
            yield override.input_line
        elif override.value_type != ValueType.INTERVAL_SWEEP and not override.key_or_group.startswith("hydra"):
            yield f"{override.key_or_group}={next(iter(override.sweep_string_iterator()))}"


@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in TRAINING])
def test_every_other_command_has_its_options(command, monkeypatch, capsys):
    first, *words = shlex.split(command)
    module = words[1] if first == "python" else MODULES[first]
    if module == "pytest":
        return
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit):
        importlib.import_module(module).main()
    known = re.findall(r"--[\w-]+", capsys.readouterr().out)
    assert [word for word in words if word.startswith("--") and word not in known] == []


def test_the_mistake_that_is_shown_is_answered_so():
    (answer,) = re.findall(r"^    \$ mtl-train strategy=mdga\n    (.*)$", README, re.MULTILINE)
    with pytest.raises(HydraException) as caught:
        load(["strategy=mdga"])
    assert explain(caught.value, ["strategy=mdga"]) == answer


def test_every_link_leads_somewhere():
    for text in (README, CONTRIBUTING):
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (ROOT / target).exists(), target


def _snippet(first_line):
    return next(code for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if code.startswith(first_line))


def test_the_six_lines_give_the_gradients_of_the_sum():
    torch.manual_seed(0)
    backbone, heads = nn.Linear(5, 4).double(), [nn.Linear(4, 3).double(), nn.Linear(4, 1).double()]
    x = torch.randn(6, 5, dtype=torch.float64)
    tasks = [
        (heads[0], F.cross_entropy, torch.arange(6) % 3),
        (heads[1], F.mse_loss, torch.randn(6, 1, dtype=torch.float64)),
    ]
    exec(_snippet("z = backbone"), {"backbone": backbone, "x": x, "tasks": tasks})
    parameters = [*backbone.parameters(), *(parameter for head in heads for parameter in head.parameters())]
    wanted = torch.autograd.grad(sum(loss(head(backbone(x)), y) for head, loss, y in tasks), parameters)
    torch.testing.assert_close([parameter.grad for parameter in parameters], list(wanted))
    one = torch.autograd.grad(F.mse_loss(heads[1](backbone(x)), tasks[1][2]), backbone.weight)[0]
    assert not torch.allclose(one, backbone.weight.grad)  # one task's gradient is another


def test_the_layer_runs():
    model = nn.Module()
    model.trunk, model.depth, model.normals = nn.Linear(2, 3), nn.Linear(3, 4), nn.Linear(3, 1)
    targets = {"y1": torch.tensor([0, 1]), "y2": torch.ones(2, 1)}
    scope = {"mtl": mtl, "self": model, "x": torch.randn(2, 2), "ce": F.cross_entropy, "l1": F.l1_loss}
    exec(_snippet("self.balance"), scope | targets)
    assert model.trunk.weight.grad.abs().max() > 0 and model.balance.last.tasks == ["depth", "normals"]


RESULTS = {
    "equal weighting": "Naive",
    "the best static weights": "Static",
    "the best rule by Δm, UPGrad": "UPGrad",
    "MGDA, features": "MGDA space=features",
    "MGDA, parameters": "MGDA space=parameters",
}


@pytest.mark.parametrize("row", RESULTS)
def test_a_row_of_the_results_is_that_of_the_study(row):
    """Means and intervals, rounded; and UPGrad's Δm is the lowest of all."""
    (cells,) = re.findall(rf"^\| {row} \| (.*) \|$", README, re.MULTILINE)
    study = (ROOT / "experiments" / "digits_strategies" / "README.md").read_text()
    arms = {
        name: numbers.split(" | ")
        for name, numbers in re.findall(r"^\| ([\w= ]+) \| (0\.\d+ ±.*) \|$", study, re.MULTILINE)
        if " alone" not in name
    }
    for shown, exact in zip(cells.split(" | ")[:4], arms[RESULTS[row]][:4], strict=True):
        for number, reference in zip(_numbers(shown), _numbers(exact), strict=True):
            digits = len(number.partition(".")[2])
            assert abs(float(number) - float(reference)) <= 0.5001 * 10**-digits, (row, shown, exact)
    assert min(arms, key=lambda name: float(_numbers(arms[name][3])[0])) == "UPGrad"


def _numbers(cell):
    return re.findall(r"-?\d+\.\d+", cell.replace("−", "-"))


def test_the_memory_is_that_of_the_study():
    """Eight heads; tests/system/test_memory.py measures the study's table."""
    detached, naive = re.search(r"take ([\d,]+) MiB, and\s+one backward of the summed losses ([\d,]+)", README).groups()
    study = (ROOT / "experiments" / "multi_token" / "README.md").read_text()
    for row, peak in (("naive", naive), ("detached", detached)):
        assert re.search(rf"^\| {row} \|.*\| {peak} \(\S+\) \|$", study, re.MULTILINE)
