"""Activation checkpointing, compiled parts, and export."""

import pytest
import torch
from support.layered import equal, gradients_of
from support.networks import distance
from support.two_heads import two, two_losses
from torch.utils.checkpoint import checkpoint

from mtl.rules import GradVac, UPGrad


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("inside", ["trunk", "trunk and layer", "all"])
def test_activation_checkpointing_changes_nothing(inside, reentrant):
    model, x = two(GradVac(2))
    for _ in range(2):
        model.zero_grad()
        sum(two_losses(model(x)).values()).backward()
    expected, steps = gradients_of(model), model.balance.state_dict()
    model, x = two(GradVac(2))
    x.requires_grad_()  # without it, reentrant checkpoints have no gradient

    def parts(x):
        z = model.balance(model.trunk(x))
        return z["a"], z["b"]

    for _ in range(2):
        model.zero_grad()
        if inside == "trunk":
            z = model.balance(checkpoint(model.trunk, x, use_reentrant=reentrant))
            out = {"a": model.a(z["a"]), "b": model.b(z["b"])}
        elif inside == "all":
            a, b = checkpoint(lambda x: tuple(model(x).values()), x, use_reentrant=reentrant)
            out = {"a": a, "b": b}
        else:
            a, b = checkpoint(parts, x, use_reentrant=reentrant)
            out = {"a": model.a(a), "b": model.b(b)}
        sum(two_losses(out).values()).backward()
    assert equal(expected, gradients_of(model))
    assert torch.equal(steps["_extra_state"], model.balance.state_dict()["_extra_state"])


@pytest.mark.parametrize("compiled", ["trunk and heads", "model"])
def test_compiled_parts_around_the_eager_layer(compiled):
    model, x = two(UPGrad())
    sum(two_losses(model(x)).values()).backward()
    expected, weights = gradients_of(model), model.balance.last.weights
    model.zero_grad()
    if compiled == "model":
        run = torch.compile(model, backend="aot_eager")
    else:
        for part in (model.trunk, model.a, model.b):
            part.compile(backend="aot_eager")
        run = model
    sum(two_losses(run(x)).values()).backward()
    assert distance(expected, gradients_of(model)) <= 1e-12
    assert model.balance.last.weights == pytest.approx(weights, rel=1e-12)
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "export",
    [
        lambda m, x: torch.export.export(m, (x,)).module(),
        lambda m, x: torch.compile(m, backend="aot_eager", fullgraph=True),
    ],
    ids=["export", "compile"],
)
def test_in_evaluation_the_model_is_one_graph(export):
    model, x = two()
    expected = model.eval()(x)
    with torch.no_grad():
        assert equal(expected, export(model, x)(x))
    torch._dynamo.reset()
