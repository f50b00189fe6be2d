"""The layer in one process: what the trunk and the heads get, for every rule, and what is refused."""

import copy
import io
import pickle
import warnings
from dataclasses import dataclass

import pytest
import safetensors.torch
import torch
from support import architectures
from support.layered import balance, equal, gradients_of, layered_gradients, rows_by_hand
from support.networks import distance, gradients, make
from support.rule_zoo import KEEPING, ON_GRAM, ON_ROWS
from torch import nn
from torch.utils.checkpoint import checkpoint

import mtl
from mtl.rules import MGDA, CAGrad, GradDrop, GradVac, NashMTL, PCGrad, Sum, UPGrad
from mtl.strategies import Balanced
from mtl.weightings import Equal


def strategy(rule, tasks, **options):
    return Balanced(Equal(), rule, [task.name for task in tasks], **options)


class Seen(Sum):
    """Remembers the matrices that it was asked about."""

    def __init__(self):
        super().__init__()
        self.grams = []

    def forward(self, gram, losses=None):
        self.grams.append(gram)
        return super().forward(gram)


class ByLosses(nn.Module):
    def forward(self, gram, losses):
        return losses.double() / losses.double().sum()


class Two(nn.Module):
    """A trunk and two heads in plain PyTorch, as a stranger has it."""

    def __init__(self, layer=None):
        super().__init__()
        self.trunk, self.a, self.b = nn.Sequential(nn.Linear(4, 5), nn.Tanh()), nn.Linear(5, 2), nn.Linear(5, 3)
        self.balance = layer

    def forward(self, x):
        z = self.trunk(x)
        z = {"a": z, "b": z} if self.balance is None else self.balance(z)
        return {"a": self.a(z["a"]), "b": self.b(z["b"])}


def two(rule=None, seed=0, **options):
    torch.manual_seed(seed)
    model = Two().double()
    model.balance = mtl.Balance(MGDA() if rule is None else rule, ["a", "b"], **options)
    return model, torch.randn(7, 4, dtype=torch.float64)


def two_losses(out):
    return {"a": out["a"].square().mean(), "b": (out["b"] - 1).abs().mean()}


def trained(model, x, steps=2, rate=0.1):
    """The parameters after some steps of gradient descent."""
    for _ in range(steps):
        model.zero_grad()
        sum(two_losses(model(x)).values()).backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= rate * p.grad
    return {name: p.detach().clone() for name, p in model.named_parameters()}


# ------------------------------------------------------------------------------------------ the direction


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


# ------------------------------------------------------------------------------------------ features


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


# ------------------------------------------------------------------------------------------ what it saw


def test_without_a_rule_it_measures_and_changes_no_bit():
    model, tasks, inputs, targets = make("tokens", 3)
    names = [task.name for task in tasks]
    layer = balance(None, tasks, every=2)
    plain = layered_gradients(layer.eval(), model, tasks, inputs, targets)
    for measured in (True, False, True):
        assert equal(plain, layered_gradients(layer.train(), model, tasks, inputs, targets))
        assert (layer.last.gram is not None) == measured
    _, result = gradients(strategy(Sum(), tasks), model, tasks, inputs, targets)
    assert layer.last.conflict == mtl.conflict_metrics(result.gram, names)
    assert layer.rule is None


def test_the_log_gets_the_runs_names_after_each_backward_that_measured():
    model, x = two(UPGrad(), every=2)
    records = []
    model.balance.log_to(records.append)
    for _ in range(3):
        sum(two_losses(model(x)).values()).backward()
    assert len(records) == 2
    assert records[-1] == model.balance.last.metrics
    assert {"conflict/cos/a~b", "conflict/norm/a", "weight/a", "weight/b"} <= set(records[-1])
    assert all(isinstance(value, int | float) for value in records[-1].values())
    model.balance.log_to(None)
    sum(two_losses(model(x)).values()).backward()
    assert len(records) == 2


def test_a_forward_sent_backward_in_parts_is_warned_of_once(caplog):
    model, x = two()
    for _ in range(2):
        losses = two_losses(model(x))
        losses["a"].backward(retain_graph=True)
        losses["b"].backward()
    assert [record.getMessage().count("b came in another backward") for record in caplog.records] == [1]
    caplog.clear()
    model, x = two()
    total = sum(two_losses(model(x)).values())
    total.backward(retain_graph=True)
    total.backward()
    two_losses(model(x))["a"].backward()
    assert not caplog.records


# ------------------------------------------------------------------------------------------ losses, scales, precision


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


# ------------------------------------------------------------------------------------------ state


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


# ------------------------------------------------------------------------------------------ checkpointing, compile


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


# ------------------------------------------------------------------------------------------ refused


def test_transforms_of_torch_func_are_refused():
    model, x = two()
    parameters = dict(model.named_parameters())

    def total(parameters, x):
        return sum(two_losses(torch.func.functional_call(model, parameters, (x,))).values())

    with pytest.raises(RuntimeError, match=r"^Balance works on the gradients of a backward, and not in transforms of"):
        torch.func.grad(total)(parameters, x)
    model.eval()
    assert torch.func.grad(total)(parameters, x)  # where the layer does nothing


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
def test_differentiating_twice_is_refused_at_once():
    model, x = two()
    with pytest.raises(RuntimeError, match=r"^Balance cannot be differentiated twice: create_graph=True"):
        sum(two_losses(model(x)).values()).backward(create_graph=True)
    z = model.balance(model.trunk(x))
    loss = model.a(z["a"]).square().mean()
    (slope,) = torch.autograd.grad(loss, z["a"], create_graph=True)  # behind the layer it is nobody's business
    (loss + model.b(z["b"]).mean() + slope.square().sum()).backward()


def test_data_parallel_is_refused():
    with pytest.raises(RuntimeError, match=r"in torch\.nn\.DataParallel; use DistributedDataParallel"):
        mtl.Balance(MGDA(), ["a"])._replicate_for_data_parallel()


def test_a_head_that_works_in_place_is_refused():
    model, x = two()
    model.a = nn.Sequential(nn.ReLU(inplace=True), model.a)
    with pytest.raises(RuntimeError, match="modified inplace"):
        model(x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(rule=MGDA, tasks=["a"]), "rule=.* must be a module, as mtl.rules.UPGrad"),
        (dict(rule="mgda", tasks=["a"]), "rule=mgda must be a module"),
        (dict(rule=MGDA(), tasks="ab"), "tasks=ab must be a list of different names"),
        (dict(rule=MGDA(), tasks=[]), "tasks=.* must be a list of different names"),
        (dict(rule=MGDA(), tasks=["a", "a"]), "tasks=.* must be a list of different names"),
        (dict(rule=MGDA(), tasks=["a", 1]), "tasks=.* must be a list of different names"),
        (dict(rule=MGDA(), tasks=["a"], every=0), "every=0 must be 1 or more"),
        (dict(rule=MGDA(), tasks=["a"], scale="task"), "scale=task must be a number, or the word"),
        (dict(rule=None, tasks=["a"], scale=2.0), "scale=2.0 must be 1 without a rule"),
        (dict(rule=MGDA(), tasks=["a"], loss_scale=0), "loss_scale=0 must be a number above 0, or a scaler"),
        (dict(rule=MGDA(), tasks=["a"], loss_scale="dynamic"), "loss_scale=dynamic must be a number above 0"),
        (dict(rule=GradDrop(), tasks=["a"], every=2), "GradDrop works on the rows themselves: it needs every=1"),
        (dict(rule=GradVac(3), tasks=["a", "b"]), "GradVac has num_tasks=3, but there are 2 tasks"),
    ],
)
def test_options_that_do_not_fit_are_refused_in_one_sentence(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        mtl.Balance(**options)
    assert str(caught.value).count("\n") == 0


def test_a_task_that_was_not_declared_is_named():
    model, x = two()
    with pytest.raises(KeyError, match="depht is no task of the layer; accepted: a, b"):
        model.balance(model.trunk(x))["depht"]
    with pytest.raises(KeyError, match="c is no task of the layer"):
        model.balance.losses({"c": torch.ones(())})


def test_features_without_a_tensor_are_refused():
    class Output:
        pass

    with pytest.raises(ValueError, match="The features must be a tensor or a nesting of tensors, not Output"):
        mtl.Balance(MGDA(), ["a"])(Output())


def test_features_that_would_pass_by_the_rule_are_refused():
    @dataclass
    class Output:
        last: torch.Tensor

    z = torch.randn(2, 3, requires_grad=True)
    layer = mtl.Balance(None, ["a"])
    with pytest.raises(
        ValueError, match="have tensors in a Output, which would pass by the rule; use a tuple, list or"
    ):
        layer((z, Output(z)))
    with pytest.raises(ValueError, match=r"Complex features cannot be compared; hand over torch\.view_as_real"):
        layer(torch.randn(2, 3, dtype=torch.cfloat, requires_grad=True))


def test_a_layer_on_the_features_of_another_layer():
    z = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    first, second = mtl.Balance(None, ["a"]), mtl.Balance(None, ["c", "d"])
    split = second(first(z))
    (split["c"]["a"].sum() + split["d"]["a"].square().sum()).backward()
    rows = torch.stack([torch.ones(12, dtype=torch.float64), 2 * z.detach().flatten()])
    assert torch.allclose(second.last.gram, rows @ rows.T) and torch.allclose(z.grad, 1 + 2 * z.detach())


def test_a_backward_that_brings_no_gradient_is_of_no_task():
    class Without(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z):
            return z.sum()

        @staticmethod
        def backward(ctx, gradient):
            return None

    for rule in (MGDA(), GradDrop()):
        z = torch.randn(4, 3, requires_grad=True)
        layer = mtl.Balance(rule, ["a", "b"])
        Without.apply(layer(z)["a"]).backward()
        assert layer.last.tasks == [] and z.grad is None


def test_an_averaged_state_is_refused_and_a_refused_one_changes_nothing():
    layer = mtl.Balance(GradVac(2), ["a", "b"])
    averaged = {name: value * 0.5 + value * 0.5 for name, value in layer.state_dict().items()}
    with pytest.raises(ValueError, match=r"is bytes, not torch.float32: leave its _extra_state out"):
        layer.load_state_dict(averaged)
    other = mtl.Balance(MGDA(), ["a", "b"])
    layer._call.steps = 7
    with pytest.raises(RuntimeError):
        other.load_state_dict(layer.state_dict())
    assert other._call.steps == 0


def test_a_layer_that_is_made_on_another_device_has_its_state_on_the_cpu():
    with torch.device("meta"):
        layer = mtl.Balance(GradVac(2), ["a", "b"])
    z = torch.randn(4, 3, requires_grad=True)
    split = layer(z)
    (split["a"].sum() - split["b"].square().sum()).backward()
    assert layer.last.gram.device.type == "cpu" and z.grad.isfinite().all()


def test_a_correct_run_does_not_warn(caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, x = two(PCGrad())
        trained(model, x)
    assert not caplog.records


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
