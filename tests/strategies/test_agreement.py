"""Naive and detached give the same gradient, and both measure the same Gram matrix."""

import pytest
import torch
from support.networks import distance, gradients, make
from torch import nn

from mtl.model import MultiTaskModel
from mtl.strategies import Detached, Naive
from mtl.tasks import Task
from mtl.weightings import Equal, Static

KINDS = ("pooled", "tokens", "pyramid")
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


def assert_agree(model, tasks, inputs, targets, weighting=None, tolerance=1e-12):
    weighting = weighting or Equal()
    naive, _ = gradients(Naive(weighting), model, tasks, inputs, targets)
    detached, _ = gradients(Detached(weighting), model, tasks, inputs, targets)
    assert sum(g.abs().sum() for g in naive.values()) > 0
    assert distance(naive, detached) <= tolerance


@pytest.mark.parametrize("count", [1, 2, 3, 8, 16])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_gradients_agree(kind, count, dtype):
    assert_agree(*make(kind, count, dtype), tolerance=TOLERANCE[dtype])


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_agree_with_plain_autograd_of_the_weighted_sum(kind):
    model, tasks, inputs, targets = make(kind, 3)
    weights = {"task0": 0.3, "task2": 2.5}
    detached, result = gradients(Detached(Static([t.name for t in tasks], weights)), model, tasks, inputs, targets)
    model.zero_grad()
    torch.manual_seed(1)
    predictions = model(inputs)
    sum(weights.get(t.name, 1.0) * t.loss(predictions[t.name], targets[t.name]) for t in tasks).backward()
    expected = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
    assert distance(expected, detached) <= 1e-12
    assert {name: weight.item() for name, weight in result.weights.items()} == {
        "task0": 0.3,
        "task1": 1.0,
        "task2": 2.5,
    }


@pytest.mark.parametrize("kind", KINDS)
def test_the_comparison_sees_one_lost_gradient(kind):
    """Negative control: a head whose gradient does not reach the trunk is far outside every tolerance."""
    model, tasks, inputs, targets = make(kind, 4)
    right, _ = gradients(Naive(Equal()), model, tasks, inputs, targets)
    wrong, _ = gradients(Naive(Static([t.name for t in tasks], {"task3": 0.999})), model, tasks, inputs, targets)
    assert distance(right, wrong) > 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_trunk_parameters(kind):
    model, tasks, inputs, targets = make(kind, 3)
    for parameter in list(model.backbone.parameters())[::2]:
        parameter.requires_grad_(False)
    assert_agree(model, tasks, inputs, targets)


@pytest.mark.parametrize("strategy", [Naive, Detached])
def test_a_frozen_trunk_has_no_gradient_and_is_still_measured(strategy):
    model, tasks, inputs, targets = make("pooled", 2)
    model.backbone.requires_grad_(False)
    _, result = gradients(strategy(Equal()), model, tasks, inputs, targets, measure=True)
    assert all(p.grad is None for p in model.backbone.parameters())
    assert result.gram.diagonal().min() > 0
    assert not inputs.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_an_absent_task_is_left_out(kind):
    model, tasks, inputs, targets = make(kind, 4)
    del targets["task1"]
    targets["task3"].fill_(float("nan"))
    assert_agree(model, tasks, inputs, targets)
    for strategy in (Naive(Equal()), Detached(Equal())):
        _, result = gradients(strategy, model, tasks, inputs, targets, measure=True)
        assert list(result.losses) == ["task0", "task2"]
        assert result.gram.shape == (2, 2)
        assert all(p.grad is None for p in model.heads["task1"].parameters())


@pytest.mark.parametrize("strategy", [Naive, Detached])
def test_a_batch_without_any_label_changes_nothing(strategy):
    model, tasks, inputs, _ = make("pooled", 2)
    _, result = gradients(strategy(Equal()), model, tasks, inputs, {}, measure=True)
    assert result.losses == {} and result.gram is None
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_of_zero(kind):
    model, tasks, inputs, targets = make(kind, 3)
    weighting = Static([t.name for t in tasks], {"task1": 0.0})
    assert_agree(model, tasks, inputs, targets, weighting)
    grads, result = gradients(Detached(weighting), model, tasks, inputs, targets, measure=True)
    assert all((g == 0).all() for n, g in grads.items() if n.startswith("heads.task1"))
    assert result.gram[1].abs().max() == 0 and result.losses["task1"] > 0


def test_heads_that_share_parameters():
    model, tasks, inputs, targets = make("pooled", 3)
    shared = nn.Linear(7, 3).double()
    for head in model.heads.values():
        head[-1] = shared
    assert_agree(model, tasks, inputs, targets)


def test_a_trunk_that_returns_its_own_parameter():
    """The toy problem's trunk: z is a leaf itself."""

    class Theta(nn.Module):
        def __init__(self):
            super().__init__()
            self.theta = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))

        def forward(self, inputs):
            return self.theta

    model = MultiTaskModel(Theta(), {"a": nn.Identity(), "b": nn.Identity()})
    tasks = [Task("a", lambda p, t: (p - t).square().sum()), Task("b", lambda p, t: p.prod() * t)]
    targets = {"a": torch.ones(2).double(), "b": torch.tensor(3.0)}
    grads, _ = gradients(Detached(Equal()), model, tasks, None, targets)
    assert torch.equal(grads["backbone.theta"], torch.tensor([0.0 - 6.0, -6.0 + 3.0]).double())


@pytest.mark.parametrize("kind", KINDS)
def test_the_gram_matrix_is_that_of_the_loss_gradients(kind):
    """Against autograd of each loss by itself with respect to what the heads get."""
    model, tasks, inputs, targets = make(kind, 5)
    weighting = Static([t.name for t in tasks], {"task1": 3.0})
    rows = []
    for task in tasks:
        torch.manual_seed(1)
        z = model.backbone(inputs)
        if isinstance(z, torch.Tensor):
            leaves = [z := z.detach().requires_grad_()]
        else:
            leaves = [level.detach().requires_grad_() for level in z["levels"]]
            z = {"levels": leaves}
        # heads before this one have drawn their dropout masks
        losses = [weighting(t.name, t.loss(model.heads[t.name](z), targets[t.name])) for t in tasks]
        loss = losses[tasks.index(task)]
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, leaves)]))
    expected = torch.stack(rows) @ torch.stack(rows).T
    for strategy in (Naive(weighting), Detached(weighting)):
        _, result = gradients(strategy, model, tasks, inputs, targets, measure=True)
        torch.testing.assert_close(result.gram, expected, rtol=1e-10, atol=0)
        assert result.space == "features"


@pytest.mark.parametrize("strategy", [Naive, Detached])
@pytest.mark.parametrize("kind", KINDS)
def test_measuring_changes_no_bit_of_the_gradient(kind, strategy):
    model, tasks, inputs, targets = make(kind, 5, torch.float32)
    plain, unmeasured = gradients(strategy(Equal()), model, tasks, inputs, targets)
    measured, _ = gradients(strategy(Equal()), model, tasks, inputs, targets, measure=True)
    assert unmeasured.gram is None
    assert all(torch.equal(plain[name], measured[name]) for name in plain)


@pytest.mark.parametrize("strategy", [Naive, Detached])
def test_gradients_are_added_to_what_is_there(strategy):
    model, tasks, inputs, targets = make("tokens", 2)
    once, _ = gradients(strategy(Equal()), model, tasks, inputs, targets)
    torch.manual_seed(1)
    strategy(Equal()).step(model, tasks, inputs, targets)
    twice = {name: p.grad for name, p in model.named_parameters()}
    assert distance({name: 2 * g for name, g in once.items()}, twice) <= 1e-12


@pytest.mark.parametrize("measure", [False, True])
@pytest.mark.parametrize("strategy", [Naive, Detached])
def test_one_trunk_backward_whatever_the_number_of_tasks(strategy, measure):
    model, tasks, inputs, targets = make("pooled", 7)
    calls = []
    model.backbone[0].weight.register_hook(lambda gradient: calls.append(1))
    gradients(strategy(Equal()), model, tasks, inputs, targets, measure=measure)
    assert len(calls) == 1


@pytest.mark.parametrize(("strategy", "alive"), [(Detached, 1), (Naive, 5)])
def test_how_many_heads_graphs_are_alive_at_once(strategy, alive):
    """Counted by the tensors that each head saves for its backward."""
    model, tasks, inputs, targets = make("pooled", 5)
    saved, most = {}, []

    class Kept:
        def __init__(self, tensor):
            self.tensor = tensor
            saved[id(self)] = self.head = inside[-1]

        def __del__(self):
            saved.pop(id(self), None)

    inside = ["trunk"]
    for name, head in model.heads.items():
        head.register_forward_pre_hook(lambda *_, name=name: inside.append(name))
        head.register_forward_hook(lambda *_: most.append(len({h for h in saved.values() if h != "trunk"})))
    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        gradients(strategy(Equal()), model, tasks, inputs, targets)
    assert max(most) == alive
