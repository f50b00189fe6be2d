"""The functions of losses: against the layer, against gradients made by hand, and what they refuse."""

import inspect
import textwrap

import pytest
import torch
from support.layered import gradients_of, rows_by_hand
from support.networks import distance
from support.rule_zoo import ON_GRAM, ON_ROWS
from torch import nn

import mtl
from mtl.rules import MGDA, GradDrop, NashMTL, UPGrad


class Parts(nn.Module):
    """A trunk, a neck that two heads share, and three heads."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 6), nn.Tanh())
        self.neck = nn.Linear(6, 6)
        self.heads = nn.ModuleDict({name: nn.Linear(6, 2) for name in "abc"})

    def losses(self, z, split=None):
        own = dict.fromkeys("abc", z) if split is None else split
        out = {name: head(self.neck(own[name]) if name in "ab" else own[name]) for name, head in self.heads.items()}
        return {name: (prediction - i).square().mean() for i, (name, prediction) in enumerate(out.items())}


def parts():
    torch.manual_seed(0)
    return Parts().double(), torch.randn(5, 4, dtype=torch.float64)


@pytest.mark.parametrize("name", [*ON_GRAM, *ON_ROWS])
def test_backward_leaves_what_the_layer_leaves(name):
    make_rule = (ON_GRAM | ON_ROWS)[name]
    model, x = parts()
    layer, rule = mtl.Balance(make_rule(3), list("abc"), scale=2.0), make_rule(3)
    for _ in range(2):
        model.zero_grad()
        z = model.trunk(x)
        sum(model.losses(z, layer(z)).values()).backward()
        expected = gradients_of(model)
        model.zero_grad()
        z = model.trunk(x)
        seen = mtl.backward(model.losses(z), z, rule, scale=2.0)
        assert distance(expected, gradients_of(model)) <= 1e-14
        assert seen.weights == pytest.approx(layer.last.weights, rel=1e-12)


def test_backward_adds_to_what_was_there():
    model, x = parts()
    z = model.trunk(x)
    mtl.backward(model.losses(z), z, NashMTL())
    once = gradients_of(model)
    z = model.trunk(x)
    mtl.backward(model.losses(z), z, NashMTL())
    assert distance({n: 2 * g for n, g in once.items()}, gradients_of(model)) <= 1e-14


def test_a_list_of_losses_and_a_nesting_of_features():
    model, x = parts()
    h = x @ model.trunk[0].weight.T
    features = {"first": h.tanh(), "more": [h.square(), torch.arange(3)]}
    losses = [features["first"].square().sum(), (features["first"] * features["more"][0]).sum()]
    rows = rows_by_hand(dict(enumerate(losses)), [features["first"], features["more"][0]])
    seen = mtl.backward(losses, features, MGDA())
    weights = MGDA()(rows @ rows.T)
    assert torch.allclose(seen.gram, rows @ rows.T, rtol=1e-12)
    assert list(seen.weights.values()) == pytest.approx(weights.tolist(), rel=1e-10)
    h = x @ model.trunk[0].weight.T
    first, second = (weights @ rows).view(2, 5, 6)
    (expected,) = torch.autograd.grad([h.tanh(), h.square()], model.trunk[0].weight, [first, second])
    assert torch.allclose(model.trunk[0].weight.grad, expected, rtol=1e-10)


def test_absent_tasks_are_none_or_without_a_gradient():
    model, x = parts()
    z = model.trunk(x)
    losses = model.losses(z)
    expected = mtl.weights_of({"a": losses["a"], "c": losses["c"]}, z, UPGrad())
    for absent in (None, torch.zeros(())):
        z = model.trunk(x)
        losses = {**model.losses(z), "b": absent}
        seen = mtl.backward(losses, z, UPGrad())
        assert seen.tasks == ["a", "c"] and seen.weights == pytest.approx(expected)
        z = model.trunk(x)
        assert mtl.weights_of({**model.losses(z), "b": absent}, z, UPGrad()) == pytest.approx({**expected, "b": 0.0})


def test_weights_of_leaves_the_graph_to_somebody_elses_backward():
    model, x = parts()
    z = model.trunk(x)
    losses = model.losses(z)
    weights = mtl.weights_of(losses, z, UPGrad(), scale="tasks")
    assert not any(p.grad is not None for p in model.parameters())
    assert weights == pytest.approx({n: 3 * w for n, w in mtl.weights_of(losses, z, UPGrad()).items()})
    as_list = mtl.weights_of(list(losses.values()), z, UPGrad(), scale="tasks")
    assert isinstance(as_list, list) and as_list == pytest.approx(list(weights.values()))
    sum(weights[name] * loss for name, loss in losses.items()).backward()
    trunk = [p.grad.clone() for p in model.trunk.parameters()]
    model.zero_grad()
    z = model.trunk(x)
    mtl.backward(model.losses(z), z, UPGrad(), scale="tasks")
    for p, g in zip(model.trunk.parameters(), trunk, strict=True):
        assert torch.allclose(p.grad, g, rtol=1e-10)


def test_only_the_given_heads_get_a_gradient():
    model, x = parts()
    for heads in (model.heads, list(model.heads.parameters())):
        model.zero_grad(set_to_none=True)
        z = model.trunk(x)
        mtl.backward(model.losses(z), z, MGDA(), heads=heads)
        assert model.neck.weight.grad is None
        assert all(p.grad is not None for p in (*model.heads.parameters(), *model.trunk.parameters()))


def test_a_heads_graph_is_freed_as_soon_as_no_later_loss_needs_it():
    model, x = parts()
    z = model.trunk(x)
    losses = model.losses(z)
    mtl.backward(losses, z, MGDA())
    for name, loss in losses.items():  # down to the head alone: the trunk's graph is freed in any case
        with pytest.raises(RuntimeError, match="second time"):
            torch.autograd.grad(loss, model.heads[name].weight)


def test_hooks_see_the_heads_gradients():
    model, x = parts()
    seen = []
    for name, p in model.named_parameters():
        p.register_post_accumulate_grad_hook(lambda p, name=name: seen.append(name))
    z = model.trunk(x)
    mtl.backward(model.losses(z), z, MGDA())
    assert sorted(seen) == sorted(name for name, _ in model.named_parameters())


def test_without_a_rule_the_sum():
    model, x = parts()
    sum(model.losses(model.trunk(x)).values()).backward()
    expected = gradients_of(model)
    model.zero_grad()
    z = model.trunk(x)
    seen = mtl.backward(model.losses(z), z, None)
    assert distance(expected, gradients_of(model)) <= 1e-14
    assert "conflict/cos/a~b" in seen.conflict


def test_what_does_not_fit_is_refused_in_one_sentence():
    model, x = parts()
    z = model.trunk(x)
    losses = model.losses(z)
    with pytest.raises(ValueError, match=r"The loss of a must be one number, not a tensor of shape \[5, 6\]"):
        mtl.backward({"a": z.square()}, z, MGDA())
    with pytest.raises(ValueError, match="The features need a gradient: hand over what the trunk returned"):
        mtl.backward(losses, z.detach(), MGDA())
    with pytest.raises(ValueError, match="must have at least one loss that needs a gradient"):
        mtl.backward({"a": None}, z, MGDA())
    with pytest.raises(ValueError, match="GradDrop makes a direction of the rows, and no weights; use"):
        mtl.weights_of(losses, z, GradDrop())
    with pytest.raises(ValueError, match=r"rule=.* must be a module"):
        mtl.backward(losses, z, MGDA)
    beside = {**losses, "c": losses["c"] + model.trunk[0].weight.sum()}
    with pytest.raises(ValueError, match=r"reach tensors of the trunk of shape \[6, 4\] by another way"):
        mtl.backward(beside, z, MGDA())
    with pytest.raises(ValueError, match=r"reach tensors of the trunk of shape \[6, 4\] by another way"):
        mtl.backward(beside, z, MGDA(), heads=model.heads)
    for other in (z[:, 0], z.mean(1), z.tanh() @ torch.ones(6, 2, dtype=torch.float64)):
        with pytest.raises(
            ValueError, match="what others of them were made of, so that their gradient would count twice"
        ):
            mtl.backward({**losses, "c": losses["c"] + other.sum()}, (z, other), MGDA())
        with pytest.raises(ValueError, match="would count twice"):
            mtl.weights_of(losses, (other, z), MGDA())
    assert not any(p.grad is not None for p in model.parameters())


def test_features_that_stand_in_two_places_count_once():
    model, x = parts()
    z = model.trunk(x)
    seen = mtl.backward(model.losses(z), z, UPGrad())
    once = gradients_of(model)
    model.zero_grad()
    z = model.trunk(x)
    twice = mtl.backward(model.losses(z), {"u": z, "v": (z,)}, UPGrad())
    assert torch.equal(seen.gram, twice.gram) and distance(once, gradients_of(model)) == 0


@pytest.mark.parametrize("factor", [2.0, 1.0])
def test_a_hook_changes_a_gradient_once_as_in_a_plain_backward(factor):
    found = []
    for plain in (True, False):
        model, x = parts()
        model.heads["a"].weight.register_hook(lambda g: factor * g)
        z = model.trunk(x)
        z.register_hook(lambda g: factor * g)
        if plain:
            sum(model.losses(z).values()).backward()
        else:
            mtl.backward(model.losses(z), z, None)
        found.append(gradients_of(model))
    assert distance(*found) <= 1e-14


def test_a_rule_gets_the_losses_that_are_in_hand():
    class ByLosses(nn.Module):
        def forward(self, gram, losses=None):
            return losses / losses.sum()

    model, x = parts()
    z = model.trunk(x)
    losses = model.losses(z)
    expected = {task: float(loss / sum(losses.values())) for task, loss in losses.items()}
    assert mtl.weights_of(losses, z, ByLosses()) == pytest.approx(expected)
    assert mtl.backward(losses, z, ByLosses()).weights == pytest.approx(expected)


# ------------------------------------------------------------------------------------------ the documented loops


def documented(thing):
    """The code in a docstring, after its first ::"""
    code = []
    for line in inspect.cleandoc(thing.__doc__).split("::\n", 1)[1].splitlines():
        if line and not line.startswith(" "):
            break
        code.append(line)
    return textwrap.dedent("\n".join(code))


@pytest.mark.parametrize("loop", [mtl.Cut, mtl.backward])
def test_the_documented_loop_is_the_layer_and_frees_each_heads_graph(loop):
    code = documented(loop)
    assert 3 <= len(code.strip().splitlines()) <= 15
    model, x = parts()
    targets = {name: torch.full((5, 2), float(i), dtype=torch.float64) for i, name in enumerate("abc")}
    heads, kept = dict(model.heads.items()), []

    def loss(prediction, target):
        kept.append((prediction - target).square().mean())
        return kept[-1]

    z = mtl.Balance(UPGrad(), list("abc"))(model.trunk(x))
    sum(loss(heads[name](z[name]), targets[name]) for name in "abc").backward()
    expected = gradients_of(model)
    model.zero_grad()
    kept.clear()
    exec(code, {"mtl": mtl, "trunk": model.trunk, "heads": heads, "loss": loss, "x": x, "y": targets, "rule": UPGrad()})
    assert distance(expected, gradients_of(model)) <= 1e-14
    assert len(kept) == 3
    for value, head in zip(kept, heads.values(), strict=True):
        with pytest.raises(RuntimeError, match="second time"):
            torch.autograd.grad(value, head.weight)
