"""The lookahead against a plain loop: copy the model, take the step, evaluate; and that it leaves no trace."""

import copy

import pytest
import torch
from support.exactness import differing
from support.networks import make
from torch import nn

from mtl.engine.engine import Engine
from mtl.engine.look import losses_at
from mtl.engine.lookahead import look_ahead
from mtl.engine.precision import Precision
from mtl.model import MultiTaskModel
from mtl.system.environment import rng_state
from mtl.tasks import Task


def by_hand(model, tasks, inputs, targets, lr, shared="backbone."):
    """TAG's definition on fresh copies, with plain SGD of torch; the same random numbers in every pass."""

    def losses(own, seed):
        torch.manual_seed(seed)
        predictions = own(inputs)
        return [task.loss(predictions[task.name], targets[task.name]) for task in tasks]

    before = torch.stack(losses(copy.deepcopy(model), 1)).detach()
    rows = []
    for i in range(len(tasks)):
        moved = copy.deepcopy(model)
        losses(moved, 1)[i].backward()
        parameters = [p for name, p in moved.named_parameters() if name.startswith(shared)]
        torch.optim.SGD(parameters, lr).step()
        rows.append(1 - torch.stack(losses(moved, 1)).detach() / before)
    return torch.stack(rows)


@pytest.mark.parametrize("kind", ["pooled", "tokens", "pyramid"])
@pytest.mark.parametrize("count", [2, 5])
def test_it_is_a_copy_a_step_and_an_evaluation(kind, count):
    model, tasks, inputs, targets = make(kind, count)
    expected = by_hand(model, tasks, inputs, targets, 0.3)
    torch.manual_seed(1)
    found = look_ahead(Engine(model, tasks), inputs, targets, 0.3)
    assert found.tasks == [task.name for task in tasks]
    torch.testing.assert_close(found.affinity, expected, rtol=0, atol=1e-10)
    assert (found.affinity - expected.T).abs().max() > 1e-4  # negative controls: the order, and the rate
    torch.manual_seed(1)
    assert (look_ahead(Engine(model, tasks), inputs, targets, 0.29).affinity - expected).abs().max() > 1e-4


def test_other_random_numbers_would_hide_the_step():
    """Negative control of the draws: with other dropout masks after the step, the difference is the masks'."""
    model, tasks, inputs, targets = make("pooled", 2)
    torch.manual_seed(1)
    found = look_ahead(Engine(model, tasks), inputs, targets, 0.0)
    assert found.affinity.abs().max() == 0
    torch.manual_seed(2)
    assert model(inputs)["task0"].ne(model(inputs)["task0"]).any()


def test_its_first_order_is_what_it_comes_to_for_small_steps():
    model, tasks, inputs, targets = make("pooled", 3)
    errors = []
    for lr in (1e-4, 1e-5):
        torch.manual_seed(1)
        found = look_ahead(Engine(model, tasks), inputs, targets, lr)
        errors.append(((found.affinity - found.first_order).abs() / lr).max().item())
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.05)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_mixed_precision_does_not_round_the_step_away(kind):
    """At a rate of 1e-3 the error of bfloat16 was several times what one task does to another."""
    model, tasks, inputs, targets = make("pooled", 3)
    model, inputs = model.float().eval(), inputs.float()
    targets = {name: y.float() if y.is_floating_point() else y for name, y in targets.items()}
    engine = Engine(model, tasks, Precision(kind))
    assert engine.features(inputs).dtype == kind  # negative control
    found, expected = look_ahead(engine, inputs, targets, 1e-3), look_ahead(Engine(model, tasks), inputs, targets, 1e-3)
    assert torch.equal(found.affinity, expected.affinity) and torch.equal(found.first_order, expected.first_order)


def test_it_changes_no_bit_of_model_losses_and_generators():
    class Counting(nn.MSELoss):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, prediction, target):
            self.calls += 1
            return super().forward(prediction, target)

    model, tasks, inputs, targets = make("pooled", 2)
    tasks[1].loss = loss = Counting()
    model.heads["task0"].kept = model(inputs)["task0"]  # a tensor of a graph, as penalties keep one
    before, states = {name: value.clone() for name, value in model.state_dict().items()}, rng_state()
    calls = loss.calls.clone()
    assert look_ahead(Engine(model, tasks), inputs, targets, 0.3) is not None
    assert differing(before, model.state_dict()) == [] and torch.equal(loss.calls, calls)
    assert all(p.grad is None for p in model.parameters()) and model.training
    assert differing({"rng": states}, {"rng": rng_state()}) == []
    model(inputs)  # negative control
    assert differing(before, model.state_dict()) and differing({"rng": states}, {"rng": rng_state()})


def test_a_trunk_that_works_in_place_on_its_inputs_does_it_to_copies():
    class Centring(nn.Linear):
        def forward(self, inputs):
            return super().forward(inputs.sub_(1.0))

    torch.manual_seed(0)
    model = MultiTaskModel(Centring(3, 4), {name: nn.Linear(4, 1) for name in "ab"}).double()
    tasks = [Task(name, nn.MSELoss()) for name in "ab"]
    inputs = torch.randn(6, 3).double()
    targets = {name: torch.randn(6, 1).double() for name in "ab"}
    before = inputs.clone()
    found = look_ahead(Engine(model, tasks), inputs, targets, 0.1)
    losses_at(Engine(model, tasks), (inputs, targets))
    assert torch.equal(inputs, before)
    plain = MultiTaskModel(nn.Linear(3, 4), {name: nn.Linear(4, 1) for name in "ab"}).double()
    plain.load_state_dict(model.state_dict())
    expected = look_ahead(Engine(plain, tasks), inputs - 1.0, targets, 0.1)
    torch.testing.assert_close(found.affinity, expected.affinity, rtol=0, atol=1e-12)
    model(inputs)  # negative control
    assert not torch.equal(inputs, before)


def test_absent_tasks_and_frozen_trunks_are_left_out():
    model, tasks, inputs, targets = make("pooled", 3)
    targets["task1"] = torch.full_like(targets["task1"], torch.nan)
    assert look_ahead(Engine(model, tasks), inputs, targets, 0.1).tasks == ["task0", "task2"]
    del targets["task2"]
    assert look_ahead(Engine(model, tasks), inputs, targets, 0.1) is None  # one is left
    model, tasks, inputs, targets = make("pooled", 2)
    model.backbone.requires_grad_(False)
    assert look_ahead(Engine(model, tasks), inputs, targets, 0.1) is None


def test_parameters_that_heads_share_are_shared():
    """An unembedding that both heads hold is moved as well, and a head's own layer is not."""
    torch.manual_seed(0)
    heads = {name: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1)) for name in "ab"}
    model = MultiTaskModel(nn.Linear(3, 4), heads, share=["1"]).double()
    tasks = [Task(name, nn.MSELoss()) for name in "ab"]
    inputs = torch.randn(6, 3).double()
    targets = {name: torch.randn(6, 1).double() for name in "ab"}
    expected = by_hand(model, tasks, inputs, targets, 0.1, shared=("backbone.", "heads.a.1."))
    found = look_ahead(Engine(model, tasks), inputs, targets, 0.1)
    torch.testing.assert_close(found.affinity, expected, rtol=0, atol=1e-10)
    other = by_hand(model, tasks, inputs, targets, 0.1)
    assert (found.affinity - other).abs().max() > 1e-3
