"""Steps of ours, of plain PyTorch, and of the loops that a person would write by hand for the same gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from problems import Problem
from torch import Tensor, nn

from mtl.rules import MGDA, CAGrad, GradDrop, NashMTL, PCGrad, UPGrad
from mtl.strategies import AutoLambda, Balanced, Detached, MoDo, Naive, Strategy
from mtl.training.step_metrics import CosineAverage
from mtl.weightings import Equal

# Forward and backward of one batch. It leaves the gradients in .grad and clears none: whoever runs it has done so.
Step = Callable[[], Any]

# One rule of each class: a quadratic program, one for each task, a convex program, a system of equations, projections.
RULES: dict[str, Callable[[], nn.Module]] = {
    "MGDA": MGDA,
    "UPGrad": UPGrad,
    "CAGrad": CAGrad,
    "NashMTL": NashMTL,
    "PCGrad": PCGrad,
}


def our_steps(problem: Problem) -> dict[str, Step]:
    """All of them, by their rows' names."""
    return core_steps(problem) | rule_steps(problem) | parameter_steps(problem) | looking_steps(problem)


def core_steps(problem: Problem) -> dict[str, Step]:
    """The baseline, what it is beside by hand, and one rule in both spaces."""
    return {
        "naive": ours(problem, Naive(Equal())),
        "naive, again": ours(problem, Naive(Equal())),
        "plain PyTorch: sum of losses": sum_of_losses(problem),
        "by hand: detached": detached_by_hand(problem),
        "by hand: MGDA, features": mgda_by_hand(problem),
        "detached": ours(problem, Detached(Equal())),
        "detached, conflict metrics": with_metrics(problem, Detached(Equal())),
        "MGDA, features": ours(problem, balanced(problem, MGDA())),
        "MGDA, parameters": ours(problem, balanced(problem, MGDA(), "parameters")),
    }


def rule_steps(problem: Problem) -> dict[str, Step]:
    """The further rules at the features; GradDrop works on the rows, not on their Gram matrix."""
    made = {f"{name}, features": make() for name, make in RULES.items() if name != "MGDA"}
    made["GradDrop, rows"] = GradDrop()
    return {name: ours(problem, balanced(problem, rule)) for name, rule in made.items()}


def parameter_steps(problem: Problem) -> dict[str, Step]:
    """The further rules at the trunk's parameters, one trunk backward a task; the audit, which compares both."""
    made = {f"{name}, parameters": make() for name, make in RULES.items() if name != "MGDA"}
    rows = {name: ours(problem, balanced(problem, rule, "parameters")) for name, rule in made.items()}
    return rows | {"detached, audit": ours(problem, Detached(Equal()), audit=True)}


def looking_steps(problem: Problem) -> dict[str, Step]:
    """A rule for each layer, and what takes several batches a step: here, the same one each time."""
    names = [task.name for task in problem.tasks]
    layers = Balanced(Equal(), MGDA(), names, space="parameters", groups="layer")
    return {
        "MGDA, each layer": ours(problem, layers),
        "MoDo, three batches": drawing(problem, MoDo(Equal(), names)),
        "Auto-lambda, two batches": drawing(problem, AutoLambda(Equal(), names)),
    }


def drawing(problem: Problem, strategy: Strategy) -> Step:
    """The look at the batches of a step, and the step on the last one."""
    batch = problem.inputs, problem.targets

    def step() -> None:
        strategy.look(problem.engine, [batch] * strategy.draws, 1e-3)
        strategy.run(problem.engine, *batch)

    return step


def balanced(problem: Problem, rule: nn.Module, space: str = "features") -> Balanced:
    """The strategy with this rule."""
    return Balanced(Equal(), rule, [task.name for task in problem.tasks], space=space)


def ours(problem: Problem, strategy: nn.Module, **asked: bool) -> Step:
    """A strategy's step."""
    return lambda: strategy.run(problem.engine, problem.inputs, problem.targets, **asked)


def with_metrics(problem: Problem, strategy: nn.Module) -> Step:
    """What a run does in a step whose conflict metrics are logged."""
    conflicts = CosineAverage([task.name for task in problem.tasks])

    def step() -> None:
        result = ours(problem, strategy, measure=True)()
        conflicts.update(result.gram, list(result.losses))

    return step


def sum_of_losses(problem: Problem) -> Step:
    """No framework: one backward of the sum."""

    def step() -> None:
        features = _features(problem)
        losses = [_loss(problem, k, features) for k in range(len(problem.tasks))]
        sum(losses[1:], losses[0]).backward()

    return step


def detached_by_hand(problem: Problem) -> Step:
    """One head at a time on the detached features, then one backward of the trunk."""

    def step() -> None:
        outputs, leaves, features = _cut(problem)
        for k in range(len(problem.tasks)):
            _loss(problem, k, features).backward()
        torch.autograd.backward(outputs, [leaf.grad for leaf in leaves])

    return step


def mgda_by_hand(problem: Problem) -> Step:
    """The same with a row a task in a buffer that is kept, its Gram matrix, our rule, and the weighted sum."""
    rule, rows = MGDA(), torch.empty(0)

    def step() -> None:
        nonlocal rows
        outputs, leaves, features = _cut(problem)
        sizes = [leaf.numel() for leaf in leaves]
        if not rows.numel():
            rows = torch.empty(len(problem.tasks), sum(sizes), device=outputs[0].device)
        for k, row in enumerate(rows):
            _loss(problem, k, features).backward()
            for part, leaf in zip(row.split(sizes), leaves, strict=True):
                part.view_as(leaf).copy_(leaf.grad)
                leaf.grad = None
        direction = rule(rows @ rows.T).to(rows) @ rows
        parts = zip(direction.split(sizes), outputs, strict=True)
        torch.autograd.backward(outputs, [part.view_as(output).to(output.dtype) for part, output in parts])

    return step


def _features(problem: Problem) -> Any:
    with problem.engine.autocast():
        return problem.model.backbone(problem.inputs)


def _cut(problem: Problem) -> tuple[list[Tensor], list[Tensor], Any]:
    """The trunk's outputs, their detached leaves, and these as the heads take them."""
    features = _features(problem)
    outputs = [features] if isinstance(features, Tensor) else features
    leaves = [output.detach().requires_grad_() for output in outputs]
    return outputs, leaves, leaves[0] if isinstance(features, Tensor) else leaves


def _loss(problem: Problem, k: int, features: Any) -> Tensor:
    task = problem.tasks[k]
    with problem.engine.autocast():
        return task.loss(problem.model.heads[task.name](features), problem.targets[task.name])
