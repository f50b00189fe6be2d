"""What examples/README.md says."""

import inspect
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import mtl
from mtl.system.memory import PeakMemory
from mtl.weightings import Equal, Static

EXAMPLES = Path(__file__).parents[2] / "examples"
GUIDE = (EXAMPLES / "README.md").read_text()


def test_every_script_is_in_the_table_and_has_a_test():
    scripts = {path.stem for path in EXAMPLES.glob("*.py")}
    assert scripts == set(re.findall(r"^\| \[(\w+)\.py\]\(\1\.py\)", GUIDE, re.MULTILINE))
    assert scripts == {path.stem.removeprefix("test_") for path in Path(__file__).parent.glob("test_*.py")} - {"guide"}


def test_its_four_lines_run():
    code, _ = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    model = nn.Module()
    model.trunk, model.depth, model.normals = nn.Linear(2, 3), nn.Linear(3, 4), nn.Linear(3, 1)
    targets = {"y1": torch.tensor([0, 1]), "y2": torch.ones(2, 1)}
    exec(code, {"mtl": mtl, "self": model, "x": torch.randn(2, 2), "ce": F.cross_entropy, "l1": F.l1_loss} | targets)
    assert model.trunk.weight.grad.abs().max() > 0 and model.balance.last.tasks == ["depth", "normals"]


def test_its_mixture_of_experts_runs():
    _, code = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    model, scope = nn.Module(), {"torch": torch, "x": torch.randn(2, 2)}
    model.experts, model.balance = nn.ModuleList([nn.Linear(2, 3) for _ in range(4)]), mtl.Balance(None, ["depth"])
    model.depth_gate, model.depth = nn.Linear(2, 4), nn.Linear(3, 1)
    exec(code, scope | {"self": model}, scope)
    assert scope["depth"].shape == (2, 1)
    scope["depth"].sum().backward()
    assert all(p.grad is not None for p in model.parameters()) and model.balance.last.tasks == ["depth"]


def peak_of_a_step(count, by):
    """MiB above what was there before, in the second of two steps of ``count`` wide heads."""
    tasks = [f"task{k}" for k in range(count)]
    model = mtl.MultiTaskModel(nn.Linear(64, 256), {task: nn.Linear(256, 4096) for task in tasks})
    losses = [mtl.Task(task, nn.CrossEntropyLoss()) for task in tasks]
    x, targets = torch.randn(512, 64), {task: torch.randint(4096, (512,)) for task in tasks}
    balance = mtl.Balance(mtl.rules.UPGrad(), tasks) if by == "layer" else lambda z: dict.fromkeys(tasks, z)
    strategy = mtl.Balanced(Equal(), mtl.rules.UPGrad(), tasks)

    def step():
        if by == "strategy":
            strategy.step(model, losses, x, targets)
        else:
            z = balance(model.backbone(x))
            sum(task.loss(model.heads[task.name](z[task.name]), targets[task.name]) for task in losses).backward()

    step()  # which makes the gradients and the rule's buffers
    with PeakMemory() as memory:
        step()
    return memory.peak / 2**20


def test_the_memory_of_a_step():
    ((numbers, flat),) = re.findall(r"512 samples: ([\d., and]+) MiB for .*?; ([\d.]+) for every K", GUIDE, re.DOTALL)
    told = [float(number) for number in re.findall(r"[\d.]+\d", numbers)]
    for count, value in zip((2, 8), told[1::2], strict=True):  # of K = 1, 2, 4 and 8
        assert peak_of_a_step(count, "sum") == pytest.approx(value, rel=0.02)
        assert peak_of_a_step(count, "layer") == pytest.approx(value, rel=0.02)
        assert peak_of_a_step(count, "strategy") == pytest.approx(float(flat), rel=0.02)


@pytest.mark.parametrize("option", ["space", "token_chunks", "head_scale", "on_solver_failure", "weighting"])
def test_options_that_only_the_strategy_has(option):
    assert option in inspect.signature(mtl.Balanced).parameters
    assert option not in inspect.signature(mtl.Balance).parameters


def test_constant_weights_in_the_sum_are_those_of_the_weighting():
    model = mtl.MultiTaskModel(nn.Linear(5, 6), {"a": nn.Linear(6, 1), "b": nn.Linear(6, 1)}).double()
    x, y = torch.randn(7, 5).double(), {"a": torch.randn(7, 1).double(), "b": torch.randn(7, 1).double()}
    strategy = mtl.Balanced(Static(["a", "b"], {"a": 2.0, "b": 0.5}), mtl.rules.MGDA(), ["a", "b"])
    strategy.step(model, [mtl.Task(name, nn.MSELoss()) for name in "ab"], x, y)
    expected = [parameter.grad for parameter in model.parameters()]
    for weights, same in (({"a": 2.0, "b": 0.5}, True), ({"a": 1.0, "b": 1.0}, False)):
        model.zero_grad()
        z = mtl.Balance(mtl.rules.MGDA(), ["a", "b"])(model.backbone(x))
        sum(weights[name] * F.mse_loss(model.heads[name](z[name]), y[name]) for name in "ab").backward()
        found = [parameter.grad for parameter in model.parameters()]
        assert all(map(torch.equal, found, expected)) is same
