"""Every strategy's gradient under every architecture is autograd's of formulas that are written out here, by loops."""

from functools import cache

import pytest
import torch
from support.architectures import ARCHITECTURES, TASKS, looped, make
from support.networks import distance, gradients

from mtl.rules import MGDA, UPGrad
from mtl.strategies import Balanced, Detached, Naive
from mtl.weightings import Equal, Static

WEIGHTS = {"a": 0.3, "b": 2.5, "c": 1.0}
STRATEGIES = {
    "naive": lambda: Naive(Equal()),
    "detached": lambda: Detached(Equal()),
    "weights": lambda: Detached(Static(TASKS, WEIGHTS)),
    "mgda": lambda: Balanced(Equal(), MGDA(), TASKS, scale="tasks"),
    "mgda, weighted heads": lambda: Balanced(Equal(), MGDA(), TASKS, head_scale="weights"),
    "upgrad": lambda: Balanced(Equal(), UPGrad(), TASKS),
    "mgda, parameters": lambda: Balanced(Equal(), MGDA(), TASKS, space="parameters"),
}


@cache
def formula_gradients(name):
    """The gradient of every parameter, by task, by autograd of the loss that the loops give."""
    model, tasks, inputs, targets = make(name)
    predictions = looped(name, model, inputs)
    result = {}
    for task in tasks:
        loss = task.loss(predictions[task.name], targets[task.name])
        grads = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True, allow_unused=True)
        pairs = zip(model.named_parameters(), grads, strict=True)
        result[task.name] = {n: torch.zeros_like(p) if gradient is None else gradient for (n, p), gradient in pairs}
    return result


def expected(name, trunk, private):
    """Their sum, by the weights ``trunk`` in the trunk, and by ``private`` in what is private."""
    own = formula_gradients(name)
    return {
        n: sum((trunk if n.startswith("backbone.") else private)[task] * own[task][n] for task in TASKS)
        for n in own["a"]
    }


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gradients_are_those_of_the_formula(name, strategy):
    model, tasks, inputs, targets = make(name)
    found, step = gradients(STRATEGIES[strategy](), model, tasks, inputs, targets)
    used = {task: weight.item() for task, weight in step.weights.items()}
    own = WEIGHTS if strategy == "weights" else used if "heads" in strategy else dict.fromkeys(TASKS, 1.0)
    assert distance(expected(name, used, own), found) <= 1e-12
    largest = max(used, key=used.get)  # negative control: a thousandth off
    assert distance(expected(name, used | {largest: 0.999 * used[largest]}, own), found) > 1e-6


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_predictions_are_those_of_the_formula(name):
    model, _, inputs, _ = make(name)
    right = looped(name, model, inputs)
    for task, prediction in model(inputs).items():
        torch.testing.assert_close(prediction, right[task], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_a_task_reads_privately_no_other_task_trains_and_the_trunk_every_pair_does(name):
    """The definition of the cut."""
    model, tasks, inputs, targets = make(name)
    predictions = model(inputs)
    trained = {}
    for task in tasks:
        loss = task.loss(predictions[task.name], targets[task.name])
        grads = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True, allow_unused=True)
        for (parameter, _), gradient in zip(model.named_parameters(), grads, strict=True):
            if gradient is not None and gradient.abs().max() > 0:
                trained.setdefault(parameter, []).append(task.name)
    for parameter, _ in model.named_parameters():
        if parameter.startswith("backbone."):
            assert len(trained[parameter]) >= 2, parameter
        elif not (name == "mmoe, one expert" and "gate" in parameter):  # a softmax of one is constant
            assert trained[parameter] == [parameter.split(".")[1]], parameter
