"""What the trunk and the heads get: the strategies' gradients, for every rule and an architecture of one's own."""

import copy

import pytest
import torch
from support import architectures
from support.layered import balance, equal, layered_gradients, rows_by_hand
from support.networks import distance, gradients, make
from support.rule_zoo import ON_GRAM, ON_ROWS
from support.two_heads import Seen, strategy, two, two_losses
from torch import nn

import mtl
from mtl.rules import MGDA, CAGrad, GradDrop, NashMTL, Sum, UPGrad


@pytest.mark.parametrize("name", [*ON_GRAM, *ON_ROWS])
@pytest.mark.parametrize("kind", ["tokens", "pyramid"])
def test_every_rule_gives_the_strategys_gradients_to_the_last_bit(name, kind):
    model, tasks, inputs, targets = make(kind, 3)
    make_rule = (ON_GRAM | ON_ROWS)[name]
    ours, reference = balance(make_rule(3), tasks), strategy(make_rule(3), tasks)
    for step in range(3):  # a rule with state gives other weights then
        expected, result = gradients(reference, model, tasks, inputs * (step + 1), targets)
        found = layered_gradients(ours, model, tasks, inputs * (step + 1), targets)
        assert equal(expected, found)
        assert torch.equal(ours.last.gram, result.gram)
        assert ours.last.weights == pytest.approx({task: w.item() for task, w in result.weights.items()}, rel=1e-12)


@pytest.mark.parametrize("rule", [Sum, MGDA, UPGrad, CAGrad, NashMTL])
def test_the_direction_is_the_weighted_sum_of_rows_that_were_made_by_hand(rule):
    model, x = two(rule())
    z = model.trunk(x)
    rows = rows_by_hand(two_losses({"a": model.a(z), "b": model.b(z)}), [z])
    weights = rule()(rows @ rows.T)
    by_hand = torch.autograd.grad(z, list(model.trunk.parameters()), (weights @ rows).view_as(z))
    sum(two_losses(model(x)).values()).backward()
    for p, g in zip(model.trunk.parameters(), by_hand, strict=True):
        assert torch.allclose(p.grad, g, rtol=1e-12, atol=1e-14)
    assert torch.allclose(model.balance.last.gram, rows @ rows.T, rtol=1e-12)
    unequal = (weights[0] - weights[1]).abs() > 0.01
    assert unequal == (rule is not Sum)  # or the test above could not fail


@pytest.mark.parametrize("scale", [2.5, "tasks"])
@pytest.mark.parametrize("make_rule", [UPGrad, GradDrop])
def test_scale(scale, make_rule):
    model, tasks, inputs, targets = make("tokens", 3)
    expected, _ = gradients(strategy(make_rule(), tasks, scale=scale), model, tasks, inputs, targets)
    found = layered_gradients(balance(make_rule(), tasks, scale=scale), model, tasks, inputs, targets)
    assert equal(expected, found)
    assert not equal(found, layered_gradients(balance(make_rule(), tasks), model, tasks, inputs, targets))


def test_one_task():
    model, tasks, inputs, targets = make("tokens", 1)
    layer = balance(UPGrad(), tasks)
    expected, _ = gradients(strategy(UPGrad(), tasks), model, tasks, inputs, targets)
    assert equal(expected, layered_gradients(layer, model, tasks, inputs, targets))
    assert layer.last.gram.shape == (1, 1)


@pytest.mark.parametrize("name", ["MGDA", "GradVac", "PCD", "DBMTL", "TrimmedMean"])
def test_an_absent_task_is_not_asked_for_and_keeps_its_state(name):
    model, tasks, inputs, targets = make("tokens", 3)
    make_rule = (ON_GRAM | ON_ROWS)[name]
    ours, reference = balance(make_rule(3), tasks), strategy(make_rule(3), tasks)
    for missing in (None, "task1", None, "task0"):
        some = {task: target for task, target in targets.items() if task != missing}
        expected, _ = gradients(reference, model, tasks, inputs, some)
        assert equal(expected, layered_gradients(ours, model, tasks, inputs, some))
        assert ours.last.tasks == list(some) == list(ours.last.weights)


def test_a_loss_times_zero_is_a_gradient_of_zero_and_no_absent_task():
    model, x = two(rule := Seen())
    losses = two_losses(model(x))
    (losses["a"] + 0 * losses["b"]).backward()
    assert rule.grams[0].shape == (2, 2) and rule.grams[0][1, 1] == 0


def test_every_nth_backward_runs_the_rule_and_its_last_weights_stay_in_between():
    model, tasks, inputs, targets = make("tokens", 3)
    ours, reference = balance(UPGrad(), tasks, every=3), strategy(UPGrad(), tasks, every=3)
    ran = []
    for step, missing in enumerate([None, None, None, None, "task1", "task1", None]):
        some = {task: target for task, target in targets.items() if task != missing}
        expected, _ = gradients(reference, model, tasks, inputs * (step + 1), some)
        found = layered_gradients(ours, model, tasks, inputs * (step + 1), some)
        assert distance(expected, found) <= 1e-14
        ran.append(ours.last.gram is not None)
    assert ran == [True, False, False, True, True, False, True]  # also when a task comes or goes


def test_weights_that_are_not_finite_are_not_kept_for_the_steps_between():
    model, x = two(every=3)
    for factor in (1, 1, 1, float("inf"), 1, 1):
        model.zero_grad()
        (factor * sum(two_losses(model(x)).values())).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


class OwnMMoE(nn.Module):
    """A mixture of experts as somebody has it: stacked experts, a gate and a tower a task, and the layer between."""

    def __init__(self, model, layer):
        super().__init__()
        self.experts, self.balance = copy.deepcopy(model.backbone.experts), layer
        readers = {task: (head.reader.gate.linear, head.head) for task, head in model.heads.items()}
        self.gates = nn.ModuleDict({task: copy.deepcopy(gate) for task, (gate, _) in readers.items()})
        self.towers = nn.ModuleDict({task: copy.deepcopy(tower) for task, (_, tower) in readers.items()})

    def forward(self, x):
        z = self.balance(torch.stack([expert(x) for expert in self.experts], 1))  # [B, n, D], once for each task
        mixed = {task: (gate(x).softmax(-1)[..., None] * z[task]).sum(1) for task, gate in self.gates.items()}
        return {task: tower(mixed[task]) for task, tower in self.towers.items()}


@pytest.mark.parametrize("rule", [MGDA, None], ids=["mgda", "none"])
def test_a_mixture_of_experts_of_ones_own_gets_the_architectures_gradients(rule):
    model, tasks, inputs, targets = architectures.make("mmoe")
    names = [task.name for task in tasks]
    by = strategy(Sum() if rule is None else rule(), tasks, scale=1.0 if rule is None else "tasks")
    right = gradients(by, model, tasks, inputs, targets)[0]
    layer = mtl.Balance(None, names) if rule is None else mtl.Balance(rule(), names, scale="tasks")
    own = OwnMMoE(model, layer)
    predictions = own(inputs)
    sum(task.loss(predictions[task.name], targets[task.name]) for task in tasks).backward()
    expected = {
        **{f"experts.{n.removeprefix('backbone.experts.')}": g for n, g in right.items() if n.startswith("backbone")},
        **{
            n.replace("heads.", "gates.").replace("reader.gate.linear.", ""): g for n, g in right.items() if "gate" in n
        },
        **{n.replace("heads.", "towers.").replace("head.", ""): g for n, g in right.items() if ".head." in n},
    }
    found = {name: parameter.grad for name, parameter in own.named_parameters()}
    assert found.keys() == expected.keys()
    assert distance(expected, found) <= 1e-12
    plain = gradients(strategy(Sum(), tasks), model, tasks, inputs, targets)[0]  # negative control
    control = {
        f"experts.{n.removeprefix('backbone.experts.')}": g for n, g in plain.items() if n.startswith("backbone")
    }
    assert (distance(control, {n: found[n] for n in control}) > 1e-3) == (rule is not None)
