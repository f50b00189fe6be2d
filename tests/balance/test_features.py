"""Nested features, several uses in a step, and what only hands features on."""

import torch
from support.layered import equal, gradients_of
from support.networks import distance
from support.two_heads import Seen, two, two_losses

import mtl
from mtl.rules import NashMTL


def test_nested_features_are_one_set_a_task_and_leaves_without_the_trunk_are_handed_on():
    weight = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    x, sizes, name = torch.randn(5, 3, dtype=torch.float64), torch.arange(3), "maps"
    z = x @ weight
    layer = mtl.Balance(rule := Seen(), ["a", "b"])
    split = layer({"levels": (z, [z.sin()]), "input": x, "sizes": sizes, "name": name, "none": None})
    for task in ("a", "b"):
        own = split[task]
        assert own["input"] is x and own["sizes"] is sizes and own["name"] is name and own["none"] is None
        assert torch.equal(own["levels"][0], z) and own["levels"][0].data_ptr() == z.data_ptr()
        assert isinstance(own["levels"], tuple) and isinstance(own["levels"][1], list)
    a, b = split["a"], split["b"]
    assert a["levels"][0] is not b["levels"][0]
    loss_a = (a["levels"][0] * a["input"].sum(1, keepdim=True)).sum()
    loss_b = b["levels"][1][0].square().sum()
    (loss_a + loss_b).backward()
    rows = torch.zeros(2, 40, dtype=torch.float64)
    rows[0, :20] = x.sum(1, keepdim=True).expand(5, 4).flatten()
    rows[1, 20:] = 2 * z.detach().sin().flatten()
    assert torch.allclose(rule.grams[0], rows @ rows.T, rtol=1e-12)


def test_several_uses_in_one_step_each_have_their_own_weights():
    model, x = two()
    parts = x.split(3)
    one_by_one = []
    for part in parts:  # gradient accumulation: each backward before the next forward
        sum(two_losses(model(part)).values()).backward()
        one_by_one.append(model.balance.last.weights)
    expected = gradients_of(model)
    model.zero_grad()
    outputs = [two_losses(model(part)) for part in parts]  # all forward passes before the first backward
    for losses in outputs:
        sum(losses.values()).backward()
    assert equal(expected, gradients_of(model))
    model.zero_grad()
    sum(sum(two_losses(model(part)).values()) for part in parts).backward()  # one backward through three uses
    assert distance(expected, gradients_of(model)) <= 1e-14
    assert len({weights["a"] for weights in one_by_one}) == 3
    assert model.balance.last.weights == one_by_one[0]  # autograd comes to the first use last


def test_evaluation_no_grad_and_a_frozen_trunk_hand_the_features_on():
    model, x = two(rule := Seen())
    state = model.balance.state_dict()
    z = model.trunk(x)
    for task in ("a", "b"):
        assert model.balance.eval()(z)[task] is z
        with torch.no_grad():
            own = model.balance.train()(z)[task]
            assert own.data_ptr() == z.data_ptr() and own.shape == z.shape and not own.requires_grad
    model.trunk.requires_grad_(False)
    sum(two_losses(model(x)).values()).backward()
    assert model.a.weight.grad is not None and model.trunk[0].weight.grad is None
    assert not rule.grams and model.balance.last is None
    assert torch.equal(state["_extra_state"], model.balance.state_dict()["_extra_state"])


def test_a_branch_beside_the_layer_keeps_its_plain_gradient():
    model, x = two(NashMTL())
    z = model.trunk(x)
    beside = z.square().mean()
    expected = torch.autograd.grad(beside, list(model.trunk.parameters()), retain_graph=True)
    sum(two_losses(model(x)).values()).backward()
    alone = [p.grad.clone() for p in model.trunk.parameters()]
    model.zero_grad()
    z = model.trunk(x)
    own = model.balance(z)
    (sum(two_losses({"a": model.a(own["a"]), "b": model.b(own["b"])}).values()) + z.square().mean()).backward()
    for p, g, other in zip(model.trunk.parameters(), alone, expected, strict=True):
        assert torch.allclose(p.grad, g + other, rtol=1e-12)
