"""Losses that a rule needs, loss scales, and low precision."""

import copy

import pytest
import torch
from support.layered import balance, layered_gradients
from support.networks import distance, make
from support.rule_zoo import ON_GRAM, ON_ROWS
from support.two_heads import ByLosses, trained, two, two_losses

import mtl
from mtl.rules import MGDA, NashMTL, UPGrad


def test_losses_are_handed_over_to_a_rule_that_needs_them():
    model, x = two(ByLosses())
    with pytest.raises(ValueError, match=r"ByLosses needs the losses of a, b: call losses\(\{task: loss, …\}\) of the"):
        sum(two_losses(model(x)).values()).backward()
    losses = two_losses(model(x))
    model.balance.losses(losses)
    sum(losses.values()).backward()
    total = sum(loss.item() for loss in losses.values())
    assert model.balance.last.weights == pytest.approx({t: loss.item() / total for t, loss in losses.items()})
    with pytest.raises(ValueError, match="needs the losses"):  # those of the last step are gone
        sum(two_losses(model(x)).values()).backward()
    losses = two_losses(model(x))
    model.balance.losses({"a": losses["a"]})
    with pytest.raises(ValueError, match="needs the losses of b: call"):
        sum(losses.values()).backward()


class Scaler:
    def get_scale(self):
        return 1024.0


@pytest.mark.parametrize(
    "given", [1024.0, Scaler(), torch.amp.GradScaler("cpu", init_scale=1024.0)], ids=["number", "own", "GradScaler"]
)
@pytest.mark.parametrize("name", ["NashMTL", "DBMTL", "GradDrop", "PCD"])
def test_a_rule_sees_the_gradients_without_the_loss_scale(name, given):
    model, tasks, inputs, targets = make("tokens", 2)
    make_rule = (ON_GRAM | ON_ROWS)[name]
    plain, scaled = balance(make_rule(2), tasks), balance(make_rule(2), tasks, loss_scale=given)
    expected = layered_gradients(plain, model, tasks, inputs, targets)
    found = layered_gradients(scaled, model, tasks, inputs, targets, factor=1024.0)
    assert distance({name: 1024 * g for name, g in expected.items()}, found) <= 1e-13
    assert torch.allclose(plain.last.gram, scaled.last.gram, rtol=1e-12)


def test_a_rule_that_is_not_told_the_loss_scale_gives_other_weights():
    model, tasks, inputs, targets = make("tokens", 2)
    expected = layered_gradients(balance(NashMTL(), tasks), model, tasks, inputs, targets)
    found = layered_gradients(balance(NashMTL(), tasks), model, tasks, inputs, targets, factor=1024.0)
    assert distance({name: 1024 * g for name, g in expected.items()}, found) > 0.1


def test_training_with_a_scaler_equals_training_without():
    plain, x = two(NashMTL())
    expected = trained(plain, x, steps=3)
    model, x = two(NashMTL())
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=1)
    model.balance.loss_scale = scaler
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        scaler.scale(sum(two_losses(model(x)).values())).backward()
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 2048
    assert distance(expected, dict(model.named_parameters())) <= 1e-13


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_features_of_low_precision_are_compared_in_float32(dtype):
    weight = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    heads = torch.randn(2, 8, generator=torch.Generator().manual_seed(1)).to(dtype)
    layer = mtl.Balance(UPGrad(), ["a", "b"])
    z = layer(weight * 1)
    ((z["a"] * heads[0]).sum() + (z["b"] * heads[1]).sum()).backward()
    rows = heads.double()[:, None].expand(2, 4, 8).flatten(1)
    assert torch.allclose(layer.last.gram, rows @ rows.T, rtol=1e-6)
    direction = UPGrad()(rows @ rows.T) @ rows
    assert weight.grad.dtype == dtype
    assert torch.equal(weight.grad, direction.view(4, 8).float().to(dtype))


def test_a_backward_inside_of_autocast_is_as_exact_as_one_outside():
    layer = mtl.Balance(MGDA(), ["a", "b", "c"])
    z = torch.randn(8, 64, requires_grad=True)
    out = layer(z * 1)
    total = sum((out[task] * torch.randn(64)).sin().sum() for task in "abc")
    total.backward(retain_graph=True)
    outside, z.grad = (z.grad.clone(), layer.last.gram), None
    with torch.autocast("cpu", torch.bfloat16):
        total.backward()
    assert torch.equal(z.grad, outside[0]) and torch.equal(layer.last.gram, outside[1])


@pytest.mark.parametrize("name", ["MGDA", "GradVac", "GradDrop"])
def test_rows_that_are_not_finite_reach_the_trunk_as_such_and_change_no_state(name):
    model, x = two((ON_GRAM | ON_ROWS)[name](2))
    state = copy.deepcopy(model.balance.rule.state_dict())
    losses = two_losses(model(x))
    (losses["a"] * float("nan") + losses["b"]).backward()
    assert model.trunk[0].weight.grad.isnan().any()
    assert str(state) == str(model.balance.rule.state_dict())
