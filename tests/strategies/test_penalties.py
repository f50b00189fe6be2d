"""A penalty counts once, whatever the weight of its task, and is in no task's row."""

import pytest
import torch
from support.architectures import TASKS, backbone
from support.networks import distance, gradients
from torch import nn

from mtl.architectures.dselect_k import Selectors
from mtl.architectures.experts import stack
from mtl.architectures.read import Read
from mtl.engine.precision import Precision
from mtl.model import MultiTaskModel
from mtl.rules import MGDA, UPGrad
from mtl.strategies import Balanced, Detached, Naive
from mtl.tasks import Task
from mtl.weightings import DWA, UW, Equal, Static

STRATEGIES = {
    "naive": lambda: Naive(Equal()),
    "detached": lambda: Detached(Equal()),
    "weights": lambda: Detached(Static(TASKS, {"a": 0.3, "b": 0.0, "c": 2.0})),
    "naive, weights": lambda: Naive(Static(TASKS, {"a": 0.3, "b": 0.0, "c": 2.0})),
    "mgda": lambda: Balanced(Equal(), MGDA(), TASKS),
    "mgda, summed": lambda: Balanced(Equal(), MGDA(), TASKS, space="features_sum"),
    "mgda, parameters": lambda: Balanced(Equal(), MGDA(), TASKS, space="parameters"),
    "upgrad, weighted heads": lambda: Balanced(Equal(), UPGrad(), TASKS, head_scale="weights"),
    "deferred": lambda: Detached(Late(TASKS)),
    "between two runs of the rule": lambda: between("features"),
    "between, parameters": lambda: between("parameters"),
}
TARGETS = {task: torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(i))
           for i, task in enumerate(TASKS)}  # fmt: skip


def between(space):
    """A rule that keeps its last weights in this step."""
    strategy = Balanced(Equal(), MGDA(), TASKS, space=space, every=2)
    call = strategy.call
    call.steps, call.solved, call.last_weights = 1, list(TASKS), {"a": 0.2, "b": 0.5, "c": 0.3}
    return strategy


class Late(Static):
    """Weights that are known when all losses are."""

    needs_all_losses = True

    def __init__(self, tasks):
        super().__init__(tasks, {"a": 0.3, "b": 0.5, "c": 2.0})

    def weights(self, losses):
        return {task: loss.new_tensor(self.chosen(task)) for task, loss in losses.items()}


class Embedded(nn.Module):
    """The gates read an embedding, which the trunk makes: penalties have a gradient there."""

    def __init__(self, experts):
        super().__init__()
        self.embed = nn.Linear(5, 5)
        self.experts = nn.ModuleList(backbone() for _ in range(experts))

    def forward(self, inputs):
        x = torch.tanh(self.embed(inputs))
        return {"experts": stack([expert(x) for expert in self.experts]), "gate": x}


def make(entropy):
    torch.manual_seed(0)
    heads = {task: Read(Selectors(4, 2, 4.0, entropy, static=False), nn.Linear(4, 3)) for task in TASKS}
    model, inputs = MultiTaskModel(Embedded(4), heads).double(), torch.randn(6, 5, dtype=torch.float64)
    model(inputs)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
    return model, [Task(task, nn.MSELoss()) for task in TASKS], inputs


def entropies(model, inputs, factor):
    """The penalties by their formula."""
    x, total = torch.tanh(model.backbone.embed(inputs)), 0
    for head in model.heads.values():
        z = head.reader.z(x).reshape(len(x), 2, 2)
        t = (z / 4).clamp(-0.5, 0.5)
        s = -2 * t**3 + 1.5 * t + 0.5
        for i in range(2):
            for first in (False, True):
                for second in (False, True):
                    r = (s[:, i, 0] if first else 1 - s[:, i, 0]) * (s[:, i, 1] if second else 1 - s[:, i, 1])
                    total = total - factor * (r * (r + 1e-6).log()).mean()
    return total


def added(strategy, measure=False, **named):
    """What the penalty adds to every gradient of one step, what autograd says of it, and both steps' results."""
    model, tasks, inputs = make(0.7)
    found, step = gradients(strategy(), model, tasks, inputs, TARGETS, measure, **named)
    plain, *_ = make(0.0)
    without, other = gradients(strategy(), plain, tasks, inputs, TARGETS, measure, **named)
    right = torch.autograd.grad(entropies(model, inputs, 0.7), list(model.parameters()), allow_unused=True)
    right = {
        n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(model.named_parameters(), right, strict=True)
    }
    return {n: found[n] - without[n] for n in found}, right, step, other


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_penalty_adds_its_own_gradient_whatever_its_tasks_weight(name):
    found, right, step, other = added(STRATEGIES[name])
    assert distance(right, found) <= 1e-12
    assert any(gradient.abs().max() > 1e-4 for n, gradient in right.items() if n.startswith("backbone"))
    assert distance({n: 0.999 * g for n, g in right.items()}, found) > 1e-4  # negative control
    assert all(torch.equal(step.losses[task], other.losses[task]) for task in TASKS)
    assert all(torch.equal(step.weights[task], other.weights[task]) for task in TASKS)
    assert list(step.penalties) == list(TASKS) and not other.penalties


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_penalty_is_in_no_row(name):
    *_, step, other = added(STRATEGIES[name], measure=True)
    assert torch.equal(step.gram, other.gram)


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_loss_scale_multiplies_a_penalty(name):
    precision = Precision()
    precision.scale = 1024.0
    found, right, *_ = added(STRATEGIES[name], precision=precision)
    assert distance({n: 1024 * g for n, g in right.items()}, found) <= 1e-12


@pytest.mark.parametrize("name", STRATEGIES)
def test_penalties_add_up_over_batches(name):
    model, tasks, inputs = make(0.7)
    once, _ = gradients(STRATEGIES[name](), model, tasks, inputs, TARGETS)
    STRATEGIES[name]().step(model, tasks, inputs, TARGETS)
    assert distance({n: 2 * g for n, g in once.items()}, {n: p.grad for n, p in model.named_parameters()}) <= 1e-12


@pytest.mark.parametrize("name", ["naive", "detached", "mgda", "mgda, parameters"])
def test_an_absent_task_is_not_penalised(name):
    model, tasks, inputs = make(0.7)
    present = {task: target for task, target in TARGETS.items() if task != "b"}
    grads, step = gradients(STRATEGIES[name](), model, tasks, inputs, present)
    assert list(step.penalties) == ["a", "c"]
    assert all(not gradient.any() for n, gradient in grads.items() if n.startswith("heads.b."))


@pytest.mark.parametrize("name", STRATEGIES)
def test_an_audit_sees_the_same_rows(name):
    grams = []
    for entropy in (0.0, 0.7):
        model, tasks, inputs = make(entropy)
        result = STRATEGIES[name]().step(model, tasks, inputs, TARGETS, audit=True)
        grams.append(result.audit.parameters)
    torch.testing.assert_close(*grams, rtol=1e-10, atol=1e-16)


def test_learned_weightings_do_not_see_penalties():
    for weighting in (lambda: UW(TASKS), lambda: DWA(TASKS, steps_per_epoch=1)):
        found, right, *_ = added(lambda weighting=weighting: Detached(weighting().double()))
        assert distance(right, found) <= 1e-12
