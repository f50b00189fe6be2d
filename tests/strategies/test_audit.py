"""The parameter-space check against pushing every row through the trunk by hand."""

import pytest
import torch
from support.networks import distance, gradients, make

from mtl.strategies import Detached, Naive
from mtl.weightings import Equal, Static
from tests.strategies.test_balanced import Fixed, Inverse, balanced


def parameter_gram(model, tasks, inputs, targets, weights):
    rows = []
    for task in tasks:
        torch.manual_seed(1)
        predictions = model(inputs)
        loss = weights.get(task.name, 1.0) * task.loss(predictions[task.name], targets[task.name])
        grads = torch.autograd.grad(loss, list(model.backbone.parameters()), allow_unused=True)
        rows.append(torch.cat([torch.zeros(0).double(), *(g.flatten() for g in grads if g is not None)]))
    return torch.stack(rows) @ torch.stack(rows).T


def audited(strategy, model, tasks, inputs, targets):
    model.zero_grad()
    torch.manual_seed(1)
    result = strategy.step(model, tasks, inputs, targets, audit=True)
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}, result


STRATEGIES = {
    "naive": lambda tasks, weighting: Naive(weighting),
    "detached": lambda tasks, weighting: Detached(weighting),
    "balanced": lambda tasks, weighting: balanced(Fixed(0.2, -1.0, 5.0, 0.0), tasks, weighting),
    "parameters": lambda tasks, weighting: balanced(Fixed(0.2, -1.0, 5.0, 0.0), tasks, weighting, space="parameters"),
}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kind", ["pooled", "tokens", "pyramid"])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_both_gram_matrices(kind, count, strategy):
    model, tasks, inputs, targets = make(kind, count)
    weights = {"task1": 4.0}
    made = STRATEGIES[strategy](tasks, Static([t.name for t in tasks], weights))
    plain, _ = gradients(made, model, tasks, inputs, targets)
    found, result = audited(made, model, tasks, inputs, targets)
    assert distance(plain, found) <= 1e-12  # auditing does not change the step
    order = [int(name.removeprefix("task")) for name in result.audit.tasks]
    assert order == list(range(count))  # the configuration's order, whatever the weights
    expected = parameter_gram(model, tasks, inputs, targets, weights)[order][:, order]
    assert (result.audit.parameters - expected).abs().max() <= 1e-9 * expected.max()
    features = result.gram if strategy != "parameters" else gradients(
        Detached(made.weighting), model, tasks, inputs, targets, measure=True
    )[1].gram  # fmt: skip
    torch.testing.assert_close(result.audit.features, features[order][:, order], rtol=1e-10, atol=0)


def test_gradients_that_were_there_are_no_part_of_the_audit():
    model, tasks, inputs, targets = make("pooled", 3)
    strategy = Detached(Equal())
    strategy.step(model, tasks, inputs, targets)
    torch.manual_seed(1)
    result = strategy.step(model, tasks, inputs, targets, audit=True)
    order = [int(name.removeprefix("task")) for name in result.audit.tasks]
    expected = parameter_gram(model, tasks, inputs, targets, {})[order][:, order]
    assert (result.audit.parameters - expected).abs().max() <= 1e-9 * expected.max()


@pytest.mark.parametrize("strategy", [Naive, Detached])
def test_many_tasks_are_audited_by_changing_pairs(strategy):
    model, tasks, inputs, targets = make("tokens", 6)
    made, seen = strategy(Equal()), set()
    expected = parameter_gram(model, tasks, inputs, targets, {})
    for _ in range(15):
        _, result = audited(made, model, tasks, inputs, targets)
        i, j = (int(name.removeprefix("task")) for name in result.audit.tasks)
        seen.add((i, j))
        torch.testing.assert_close(result.audit.parameters[0, 1], expected[i, j], rtol=1e-9, atol=1e-12)
    assert len(seen) == 15  # all of them in turn


def test_how_many_extra_trunk_backwards_it_takes():
    """K - 1 up to four tasks, two above; none where the rows are pushed through the trunk anyway."""
    for count, strategy, expected in (
        (2, "detached", 1), (4, "detached", 3), (6, "detached", 2), (4, "naive", 3), (4, "parameters", 3),
    ):  # fmt: skip
        model, tasks, inputs, targets = make("pooled", count)
        made = STRATEGIES[strategy](tasks, Equal())
        calls = []

        # a gradient hook on the trunk's own output counts the passes through what lies below
        def count_passes(module, inputs, output, calls=calls):
            output.register_hook(lambda gradient: calls.append(1))

        model.backbone[0].register_forward_hook(count_passes)
        audited(made, model, tasks, inputs, targets)
        assert len(calls) == expected + 1, (count, strategy)


def test_a_frozen_trunk_has_nothing_to_audit():
    model, tasks, inputs, targets = make("pooled", 2)
    model.backbone.requires_grad_(False)
    assert audited(Detached(Equal()), model, tasks, inputs, targets)[1].audit is None


def test_what_the_rule_would_make_of_either_matrix():
    model, tasks, inputs, targets = make("tokens", 3)
    _, result = audited(balanced(Inverse(), tasks), model, tasks, inputs, targets)
    for weights, gram in zip(result.audit.weights, (result.audit.features, result.audit.parameters), strict=True):
        assert torch.equal(weights, 1 / gram.diagonal().sqrt())
