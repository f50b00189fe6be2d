"""The gradients of a model under every strategy, against autograd of predictions by a formula."""

import torch
from support.networks import distance, gradients
from torch import nn

from mtl.architectures.read import Read
from mtl.model import MultiTaskModel
from mtl.rules import MGDA, UPGrad
from mtl.strategies import Balanced, Detached, Naive
from mtl.tasks import Task
from mtl.weightings import Equal, Static

TASKS = ("a", "b", "c")
WEIGHTS = {"a": 0.3, "b": 2.5, "c": 1.0}
LOSSES = {"a": nn.CrossEntropyLoss, "b": nn.MSELoss, "c": nn.L1Loss}
STRATEGIES = {
    "naive": lambda: Naive(Equal()),
    "detached": lambda: Detached(Equal()),
    "weights": lambda: Detached(Static(TASKS, WEIGHTS)),
    "mgda": lambda: Balanced(Equal(), MGDA(), TASKS, scale="tasks"),
    "mgda, weighted heads": lambda: Balanced(Equal(), MGDA(), TASKS, head_scale="weights"),
    "upgrad": lambda: Balanced(Equal(), UPGrad(), TASKS),
    "mgda, parameters": lambda: Balanced(Equal(), MGDA(), TASKS, space="parameters"),
}


def assemble(architecture, head, inputs):
    """The model of an architecture in float64, with weights of some size, and its tasks with targets for ``inputs``."""
    model = MultiTaskModel(architecture.trunk, {task: Read(architecture.reader(task), head()) for task in TASKS})
    model.double()(inputs)  # what is lazy finds its shape
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
    targets = {task: torch.randn(len(inputs), 3, dtype=torch.float64) for task in TASKS}
    targets["a"] = torch.randint(3, (len(inputs),))
    return model, [Task(task, LOSSES[task]()) for task in TASKS], inputs, targets


def expected(model, tasks, targets, predictions, shared, own):
    """Autograd's gradients: weights ``shared`` for the trunk and what heads have in common, ``own`` elsewhere."""
    losses = {task.name: task.loss(predictions[task.name], targets[task.name]) for task in tasks}
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    found = []
    for weights in (shared, own):
        total = sum(weights[task] * loss for task, loss in losses.items())
        grads = torch.autograd.grad(total, list(named.values()), retain_graph=True, allow_unused=True)
        found.append([torch.zeros_like(p) if g is None else g for p, g in zip(named.values(), grads, strict=True)])
    return {name: a if name.startswith("backbone") else b for name, a, b in zip(named, *found, strict=True)}


def assert_exact(strategy, example, predict):
    """The strategy's gradients against those of ``predict(model, inputs)``; a weight a thousandth off is seen."""
    model, tasks, inputs, targets = example
    found, step = gradients(STRATEGIES[strategy](), *example)
    used = {task: weight.item() for task, weight in step.weights.items()}
    own = WEIGHTS if strategy == "weights" else used if "heads" in strategy else dict.fromkeys(TASKS, 1.0)
    by_formula = predict(model, inputs)
    right = expected(model, tasks, targets, by_formula, used, own)
    if "parameters" in strategy:  # what several heads hold gets the rule's direction
        common = {id(p) for p in model.common_parameters()}
        of_rule = expected(model, tasks, targets, by_formula, used, used)
        right |= {n: of_rule[n] for n, p in model.named_parameters() if id(p) in common}
    assert distance(right, found) <= 1e-12
    largest = max(used, key=used.get)
    wrong = expected(model, tasks, targets, by_formula, used | {largest: 0.999 * used[largest]}, own)
    assert distance(wrong, found) > 1e-6
    return found, step


def trained_by(example):
    """The tasks whose loss has a gradient at each parameter, by the parameter's name."""
    model, tasks, inputs, targets = example
    predictions = model(inputs)
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    trained = {name: [] for name in named}
    for task in tasks:
        loss = task.loss(predictions[task.name], targets[task.name])
        grads = torch.autograd.grad(loss, list(named.values()), retain_graph=True, allow_unused=True)
        for name, gradient in zip(named, grads, strict=True):
            if gradient is not None and gradient.abs().max() > 0:
                trained[name].append(task.name)
    return trained


def normalised(x, norm):
    """Batch normalisation ``norm`` of maps or vectors in training, from its definition; channels on axis 1."""
    axes = [axis for axis in range(x.dim()) if axis != 1]
    shape = [1, -1] + [1] * (x.dim() - 2)
    mean = x.mean(axes, keepdim=True)
    variance = (x - mean).square().mean(axes, keepdim=True)
    return (x - mean) / (variance + norm.eps).sqrt() * norm.weight.view(shape) + norm.bias.view(shape)
