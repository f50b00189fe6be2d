"""Parameters that several heads hold are shared: rows at the parameters, and audits, against autograd over them."""

import pytest
import torch
from support.networks import distance, gradients
from torch import nn

from mtl import rules
from mtl.engine.engine import Engine
from mtl.engine.precision import Precision
from mtl.model import MultiTaskModel
from mtl.strategies import Balanced, Detached, Naive
from mtl.tasks import Task
from mtl.weightings import GLS, UW, Equal, Static
from tests.strategies.test_balanced import WEIGHTS, Fixed, Inverse, balanced

NAMES = ("a", "b", "c")


class Twice(nn.Module):
    """A head that uses what it shares with others two times over, as MTAN's refinement on two levels."""

    def __init__(self, shared, own):
        super().__init__()
        self.shared, self.own = shared, own

    def forward(self, z):
        return self.own(self.shared(self.shared(z).tanh()).tanh())


def submodule():
    heads = {n: nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)) for n in NAMES}
    return heads, ["2"]


def module_of_two():
    shared = nn.Linear(6, 6)
    return {n: Twice(shared if n != "b" else nn.Linear(6, 6), nn.Linear(6, 3)) for n in NAMES}, []


def tied_weight():
    heads = {n: nn.Linear(6, 3) for n in NAMES}
    heads["c"].weight = heads["a"].weight
    return heads, []


KINDS = {"submodule": submodule, "module of two": module_of_two, "tied weight": tied_weight}


def make(kind, frozen=False):
    torch.manual_seed(0)
    heads, share = KINDS[kind]()
    model = MultiTaskModel(nn.Sequential(nn.Linear(5, 6), nn.Tanh()), heads, share).double()
    model.backbone.requires_grad_(not frozen)
    tasks = [Task(name, nn.MSELoss() if name == "b" else nn.CrossEntropyLoss()) for name in NAMES]
    targets = {n: torch.randn(6, 3).double() if n == "b" else torch.randint(3, (6,)) for n in NAMES}
    return model, tasks, torch.randn(6, 5).double(), targets


def over(model):
    """The parameters of the backbone, and those that have a second name in another head."""
    seen, several = {}, []
    for head in model.heads.values():
        for p in head.parameters():
            if seen.setdefault(p, head) is not head and all(p is not q for q in several):
                several.append(p)
    assert several
    return [p for p in model.backbone.parameters() if p.requires_grad] + several


def rows_by_autograd(model, tasks, inputs, targets, weights):
    """Each task's gradient [n] over the shared parameters."""
    found, predictions = [], model(inputs)
    for task in tasks:
        loss = weights.get(task.name, 1.0) * task.loss(predictions[task.name], targets[task.name])
        grads = torch.autograd.grad(loss, over(model), retain_graph=True, allow_unused=True)
        pairs = zip(over(model), grads, strict=True)
        found.append(torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in pairs]))
    return torch.stack(found)


def flat(model, grads):
    names = {p: n for n, p in model.named_parameters()}
    return torch.cat([grads[names[p]].flatten() for p in over(model)])


@pytest.mark.parametrize("head_scale", ["unit", "weights"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_rule_sees_and_weighs_them(kind, head_scale):
    model, tasks, *_ = example = make(kind)
    static = {"b": 4.0}
    strategy = balanced(Fixed(*WEIGHTS), tasks, Static(NAMES, static), space="parameters", head_scale=head_scale)
    found, result = gradients(strategy, *example)
    rows = rows_by_autograd(*example, static)
    torch.testing.assert_close(result.gram, rows @ rows.T, rtol=1e-12, atol=0)
    expected = torch.tensor(WEIGHTS).double() @ rows
    assert (flat(model, found) - expected).norm() <= 1e-12 * expected.norm()
    backbone = sum(p.numel() for p in model.backbone.parameters())
    of_backbone = rows[:, :backbone] @ rows[:, :backbone].T
    assert not torch.allclose(of_backbone, rows @ rows.T, rtol=1e-2)  # the control: they are no small part
    own, _ = gradients(balanced(Fixed(*WEIGHTS), tasks, Static(NAMES, static), head_scale=head_scale), *example)
    shared = {n for n, p in model.named_parameters() if any(p is q for q in over(model))}
    assert distance(*({n: g for n, g in grads.items() if n not in shared} for grads in (own, found))) <= 1e-12


def test_a_rule_on_rows_gets_the_whole_rows():
    model, tasks, *_ = example = make("submodule")
    found, _ = gradients(balanced(rules.TrimmedMean(), tasks, space="parameters"), *example)
    rows = rows_by_autograd(*example, {})
    (expected,), _ = rules.TrimmedMean().combine([rows], rows @ rows.T)
    assert (flat(model, found) - expected).norm() <= 1e-12 * expected.norm()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head_scale", ["unit", "weights"])
def test_between_two_runs_of_the_rule_they_keep_its_last_weights(kind, head_scale):
    example = make(kind)
    strategy = balanced(Inverse(), example[1], space="parameters", every=2, head_scale=head_scale)
    due, _ = gradients(strategy, *example)
    between, result = gradients(strategy, *example, measure=True)
    assert distance(due, between) <= 1e-12
    rows = rows_by_autograd(*example, {})
    torch.testing.assert_close(result.gram, rows @ rows.T, rtol=1e-12, atol=0)


@pytest.mark.parametrize("weighting", [lambda: UW(NAMES), GLS], ids=["UW", "GLS, from the losses of all"])
def test_weights_of_the_losses_are_in_the_rows(weighting):
    _, tasks, *_ = example = make("submodule")
    plain, given = gradients(Detached(weighting()), *example)
    weights = {n: w.item() for n, w in given.weights.items()}
    _, result = gradients(balanced(Fixed(1.0, 1.0, 1.0), tasks, weighting(), space="parameters"), *example)
    rows = rows_by_autograd(*example, weights)
    torch.testing.assert_close(result.gram, rows @ rows.T, rtol=1e-10, atol=0)
    found, _ = gradients(balanced(Fixed(1.0, 1.0, 1.0), tasks, weighting(), space="parameters"), *example)
    assert distance(plain, found) <= 1e-12


def test_an_absent_task_gradients_that_are_there_and_a_loss_scale():
    model, tasks, inputs, targets = example = make("module of two")
    del targets["a"]
    strategy = balanced(Fixed(2.0, 3.0), tasks, space="parameters")
    once, result = gradients(strategy, *example)
    rows = rows_by_autograd(model, tasks[1:], inputs, targets, {})
    torch.testing.assert_close(result.gram, rows @ rows.T, rtol=1e-12, atol=0)
    strategy.step(model, tasks, inputs, targets)
    twice = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
    assert distance({n: 2 * g for n, g in once.items()}, twice) <= 1e-12
    precision = Precision()
    precision.scale = 64.0
    scaled, result = gradients(strategy, *example, precision=precision)
    assert distance({n: 64 * g for n, g in once.items()}, scaled) <= 1e-12
    torch.testing.assert_close(result.gram, rows @ rows.T, rtol=1e-12, atol=0)


AUDITED = {
    "naive": lambda tasks: Naive(Equal()),
    "detached": lambda tasks: Detached(Equal()),
    "features": lambda tasks: balanced(Fixed(*WEIGHTS), tasks),
    "held back": lambda tasks: balanced(Fixed(*WEIGHTS), tasks, head_scale="weights"),
    "parameters": lambda tasks: balanced(Fixed(*WEIGHTS), tasks, space="parameters"),
}


@pytest.mark.parametrize("strategy", AUDITED)
@pytest.mark.parametrize("kind", KINDS)
def test_audits_have_them_and_change_no_bit(kind, strategy):
    model, tasks, inputs, targets = example = make(kind)
    made = AUDITED[strategy](tasks)
    gradients(made, *example)
    plain = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    result = made.step(model, tasks, inputs, targets, audit=True)
    rows = rows_by_autograd(*example, {})
    torch.testing.assert_close(result.audit.parameters, rows @ rows.T, rtol=1e-12, atol=0)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), plain, strict=True))
    gram = gradients(Detached(Equal()), *example, measure=True)[1].gram
    torch.testing.assert_close(result.audit.features, gram, rtol=1e-12, atol=0)


@pytest.mark.parametrize("strategy", ["detached", "parameters"])
def test_under_a_frozen_trunk_they_are_all_that_is_shared(strategy):
    model, tasks, inputs, targets = example = make("submodule", frozen=True)
    result = AUDITED[strategy](tasks).step(model, tasks, inputs, targets, audit=True)
    rows = rows_by_autograd(*example, {})
    torch.testing.assert_close(result.audit.parameters, rows @ rows.T, rtol=1e-12, atol=0)


def test_heads_in_chunks_leave_the_same():
    torch.manual_seed(0)
    heads = {n: nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)) for n in NAMES}
    model = MultiTaskModel(nn.Sequential(nn.Linear(5, 6), nn.Tanh()), heads, ["2"]).double()
    tasks = [Task(n, nn.MSELoss()) for n in NAMES]
    inputs, targets = torch.randn(4, 6, 5).double(), {n: torch.randn(4, 6, 3).double() for n in NAMES}
    weighting = Static(NAMES, {"b": 4.0})
    results = [
        gradients(
            balanced(Fixed(*WEIGHTS), tasks, weighting, space="parameters", token_chunks=chunks),
            model, tasks, inputs, targets,
        )
        for chunks in (1, 3)
    ]  # fmt: skip
    assert distance(results[0][0], results[1][0]) <= 1e-12
    torch.testing.assert_close(results[0][1].gram, results[1][1].gram, rtol=1e-12, atol=0)


def test_equal_linear_heads_of_many_tasks_are_not_run_as_one():
    torch.manual_seed(0)
    names = [f"t{i}" for i in range(8)]
    heads = {n: nn.Linear(16, 1) for n in names}
    heads["t5"].weight = heads["t1"].weight
    model = MultiTaskModel(nn.Linear(5, 16), heads).double()
    tasks = [Task(n, nn.MSELoss()) for n in names]
    example = model, tasks, torch.randn(6, 5).double(), {n: torch.randn(6, 1).double() for n in names}
    rows = rows_by_autograd(*example, {})
    strategy = Balanced(Equal(), Inverse(), names, space="parameters")
    result = strategy.run(Engine(model, tasks), *example[2:])
    torch.testing.assert_close(result.gram, rows @ rows.T, rtol=1e-10, atol=0)
