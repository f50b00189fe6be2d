"""Rows over a part of the trunk's parameters: against autograd, the whole, and counts of what runs."""

import copy

import pytest
import torch
from torch import nn

from mtl.config import load
from mtl.config.build import build
from mtl.errors import ConfigError
from mtl.model import MultiTaskModel
from mtl.rules import GradDrop, NashMTL, UPGrad
from mtl.strategies import Balanced
from mtl.tasks import Task
from mtl.weightings import Equal

NAMES = ["a", "b", "c"]


class Counting(nn.Module):
    """Counts the backwards that pass through it."""

    def __init__(self):
        super().__init__()
        self.backwards = 0

    def forward(self, x):
        x = x.view_as(x)
        if x.requires_grad:
            x.register_hook(self._count)
        return x

    def _count(self, gradient):
        self.backwards += 1


def problem():
    torch.manual_seed(0)
    trunk = nn.Sequential(
        nn.Linear(3, 8), nn.Tanh(), Counting(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh()
    )
    model = MultiTaskModel(trunk, {name: nn.Linear(6, 3) for name in NAMES}).double()
    tasks = [Task(name, nn.CrossEntropyLoss()) for name in NAMES]
    return model, tasks, torch.randn(5, 3).double(), {name: torch.randint(3, (5,)) for name in NAMES}


def balanced(**options):
    return Balanced(Equal(), UPGrad(), NAMES, space="parameters", scale="tasks", **options)


def gram_by_autograd(model, tasks, inputs, targets, parameters):
    predictions = model(inputs)
    rows = [
        torch.cat(
            [
                g.flatten()
                for g in torch.autograd.grad(
                    t.loss(predictions[t.name], targets[t.name]), parameters, retain_graph=True
                )
            ]
        )
        for t in tasks
    ]
    return torch.stack(rows) @ torch.stack(rows).T


@pytest.mark.parametrize(
    ("part", "names"),
    [
        ("5", ["5.weight", "5.bias"]),
        (["3", "5.bias"], ["3.weight", "3.bias", "5.bias"]),
        ("*.weight", ["0.weight", "3.weight", "5.weight"]),
    ],
    ids=["layer", "list", "pattern"],
)
def test_the_gram_matrix_is_that_of_the_part(part, names):
    model, *batch = problem()
    own = dict(model.backbone.named_parameters())
    expected = gram_by_autograd(model, *batch, [own[name] for name in names])
    result = balanced(part=part).step(copy.deepcopy(model), *batch)
    torch.testing.assert_close(result.gram, expected, rtol=1e-10, atol=0)
    assert not torch.allclose(expected, gram_by_autograd(model, *batch, list(own.values())))


def test_the_whole_trunk_as_a_part_is_parameter_space():
    model, *batch = problem()
    whole, part = copy.deepcopy(model), copy.deepcopy(model)
    results = balanced().step(whole, *batch), balanced(part="*").step(part, *batch)
    torch.testing.assert_close(results[0].gram, results[1].gram, rtol=1e-10, atol=0)
    for one, other in zip(whole.parameters(), part.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-10, atol=1e-14)


def test_the_whole_trunk_gets_the_weighted_sum_of_what_the_part_says():
    model, tasks, inputs, targets = problem()
    result = balanced(part="5").step(model, tasks, inputs, targets)
    weights = 3 * UPGrad()(result.gram)
    assert list(result.weights.values()) == pytest.approx(weights.tolist())
    grads = [p.grad.clone() for p in model.backbone.parameters()]
    model.zero_grad()
    predictions = model(inputs)
    sum(w * t.loss(predictions[t.name], targets[t.name]) for w, t in zip(weights, tasks, strict=True)).backward()
    for one, other in zip(grads, model.backbone.parameters(), strict=True):
        torch.testing.assert_close(one, other.grad, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(("part", "below"), [("5", 1), ("3", 1), ("0", 4), (None, 3)])
def test_one_backward_passes_below_the_part(part, below):
    model, *batch = problem()
    balanced(part=part).step(model, *batch)
    assert model.backbone[2].backwards == below


def test_between_two_runs_and_with_absent_tasks():
    model, tasks, inputs, targets = problem()
    strategy = balanced(part="5", every=2)
    first = strategy.step(model, tasks, inputs, targets)
    second = strategy.step(model, tasks, inputs, targets)
    assert second.weights == first.weights and second.gram is None
    two = {name: targets[name] for name in ("a", "c")}
    result = strategy.step(model, tasks, inputs, two)
    assert list(result.weights) == ["a", "c"] and result.gram.shape == (2, 2)


def test_what_does_not_fit():
    with pytest.raises(
        ValueError, match=r"^part=5 needs space=parameters and a rule on the Gram matrix, not space=features"
    ):
        Balanced(Equal(), NashMTL(), NAMES, part="5")
    with pytest.raises(ValueError, match="and GradDrop"):
        Balanced(Equal(), GradDrop(), NAMES, space="parameters", part="5")
    with pytest.raises(
        ConfigError,
        match=r"^strategy.part=model.layer5 matches no parameter of the backbone .*; did you mean model.layer4\.$",
    ):
        build(
            load(
                [
                    "strategy=mgda",
                    "strategy.space=parameters",
                    "strategy.part=model.layer5",
                    "backbone=resnet18",
                    "device=cpu",
                    "backbone.pretrained=false",
                ]
            )
        )
