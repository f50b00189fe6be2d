"""The rules' state: in checkpoints, in copies, and where it is computed."""

import copy
import io
import pickle

import pytest
import safetensors.torch
import torch
from support.layered import equal
from support.rule_zoo import KEEPING, ON_GRAM, ON_ROWS
from support.two_heads import trained, two

import mtl
from mtl.rules import MGDA, GradVac


@pytest.mark.parametrize("name", [*KEEPING, "PCGrad", "GradDrop", "DBMTL", "MoCo", "ExcessMTL"])
def test_a_checkpoint_of_the_model_carries_the_rules_state(name):
    make_rule = (ON_GRAM | ON_ROWS)[name]
    every = 1 if name in ON_ROWS else 2
    straight, x = two(make_rule(2), every=every)
    expected = trained(straight, x, steps=6)
    model, x = two(make_rule(2), every=every)
    trained(model, x, steps=3)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    fresh, _ = two(make_rule(2), seed=1, every=every)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert equal(expected, trained(fresh, x, steps=3))
    without, _ = two(make_rule(2), every=every)
    without.load_state_dict({k: v for k, v in model.state_dict().items() if "balance" not in k})
    assert (name == "RotoGradScale") or not equal(expected, trained(without, x, steps=3))


def test_the_state_is_one_tensor_that_does_not_grow_and_no_buffer():
    model, x = two(GradVac(2), every=2)
    before = model.state_dict()
    saved = safetensors.torch.load(safetensors.torch.save(before))  # which takes tensors only
    assert torch.equal(saved["balance._extra_state"], before["balance._extra_state"])
    assert not list(model.buffers()) and list(model.balance.modules()) == [model.balance]
    trained(model, x, steps=300, rate=1e-3)
    assert len(before["balance._extra_state"]) == len(model.state_dict()["balance._extra_state"])
    assert not torch.equal(before["balance._extra_state"], model.state_dict()["balance._extra_state"])


def test_a_model_that_was_saved_without_the_layer_loads():
    model, _ = two()
    saved = {name: value for name, value in model.state_dict().items() if "balance" not in name}
    model.load_state_dict(saved)
    with pytest.raises(RuntimeError, match="Missing"):
        model.load_state_dict({name: value for name, value in saved.items() if "trunk" not in name})


def test_a_state_of_other_tasks_is_refused():
    saved = mtl.Balance(MGDA(), ["a", "b"]).state_dict()
    with pytest.raises((ValueError, RuntimeError), match="was saved with the tasks a, b; it has a, c"):
        mtl.Balance(MGDA(), ["a", "c"]).load_state_dict(saved)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("name", ["MGDA", "GradVac", "DBMTL"])
def test_a_copy_goes_on_as_the_original_and_apart_from_it(name, copied):
    model, x = two((ON_GRAM | ON_ROWS)[name](2))
    model.balance.log_to(lambda metrics: None)  # which cannot be pickled
    trained(model, x, steps=2)
    other = copied(model)
    expected = trained(model, x, steps=2)
    assert equal(expected, trained(other, x, steps=2))


def test_a_copy_has_no_scaler_and_says_so():
    model, x = two(loss_scale=torch.amp.GradScaler("cpu"))
    other = copy.deepcopy(model)
    with pytest.raises(ValueError, match="loss_scale: a copied layer has no scaler; set its loss_scale"):
        trained(other, x)
    other.balance.loss_scale = 1.0
    trained(other, x)


def test_moving_the_model_leaves_the_rules_state_where_it_is_computed():
    model, x = two(GradVac(2))
    trained(model, x)
    before = model.balance.rule.targets.clone()
    model.bfloat16().double().to("cpu")
    assert torch.equal(before, model.balance.rule.targets) and before.any()
