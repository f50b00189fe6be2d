"""Running the heads one by one, and holding back their gradients where a weight is known only afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mtl.cut import Cut, sliced
from mtl.model import MultiTaskModel, Task, loss_modules, present_tasks, where_labelled
from mtl.weightings import Weighting, weight_of


def check_chunks(token_chunks: int) -> None:
    """ValueError unless it is a number of slices."""
    if token_chunks < 1:
        raise ValueError(f"token_chunks={token_chunks} must be 1 or more.")


class HeldGradients:
    """The heads' gradients, held back until their tasks' weights are known.

    One set of gradients a task (its head's and its loss's) is kept, which is no more than their own ``.grad`` unless
    heads share parameters.
    """

    def __init__(self, model: MultiTaskModel, tasks: Sequence[Task]) -> None:
        losses = loss_modules(tasks)
        self._of_task = {
            t.name: [*model.heads[t.name].parameters(), *(losses[t.name].parameters() if t.name in losses else ())]
            for t in tasks
        }
        every = dict.fromkeys(p for parameters in self._of_task.values() for p in parameters)
        self._before = [(p, p.grad) for p in every]
        self._held: dict[str, list[tuple[nn.Parameter, Tensor]]] = {}
        for p, _ in self._before:
            p.grad = None

    def take(self, task: str) -> None:
        """Take away what the backward of this task's head has left."""
        parameters = [p for p in self._of_task[task] if p.grad is not None]
        self._held[task] = [(p, p.grad) for p in parameters if p.grad is not None]
        for p in parameters:
            p.grad = None

    def release(self, weights: Mapping[str, Tensor | float]) -> None:
        """Add every head's gradients, times its task's weight, to what was there before and came in between."""
        for p, before in self._before:
            p.grad = before if p.grad is None else p.grad if before is None else before.add_(p.grad)
        for task, held in self._held.items():
            for p, gradient in held:
                gradient.mul_(weights[task])
                p.grad = gradient if p.grad is None else p.grad.add_(gradient)


def run_heads(
    model: MultiTaskModel,
    tasks: Sequence[Task],
    targets: Mapping[str, Any],
    cut: Cut,
    weighting: Weighting,
    held: HeldGradients | None = None,
    factors: Mapping[str, float] | None = None,
    token_chunks: int = 1,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Forward and backward of each head in turn on the cut features; returns losses and weights by task.

    A late weighting's weights are not known yet: they are one here. ``factors`` multiply what goes into the trunk.
    With ``token_chunks`` a head runs on one slice of the positions after the other.
    """
    losses, weights = {}, {}
    shares = label_shares(tasks, targets, cut.positions, token_chunks) if token_chunks > 1 else {}
    for task in tasks:
        target = targets[task.name]
        losses[task.name], weights[task.name] = (
            _run_slices(model, task, target, cut, weighting, shares[task.name])
            if shares
            else _run_head(model, task, target, cut, weighting)
        )
        if held is not None:
            held.take(task.name)
        cut.land(1.0 if factors is None else factors[task.name])
    return losses, weights


def _run_head(model: MultiTaskModel, task: Task, target: Any, cut: Cut, weighting: Weighting) -> tuple[Tensor, Tensor]:
    # A function of its own, so that nothing of this head's graph is referenced when the next one runs.
    loss = task.loss(model.heads[task.name](cut.features), target)
    weight = torch.ones_like(loss) if weighting.late else weight_of(weighting, task.name, loss)
    if loss.requires_grad:  # not where a head without parameters ignores the features
        loss.backward(weight)
    return loss.detach(), weight


def _run_slices(
    model: MultiTaskModel, task: Task, target: Tensor, cut: Cut, weighting: Weighting, shares: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """As _run_head, with the head's output alive for one slice of the positions at a time.

    The weight may depend on the loss, which is whole after the last slice only: it multiplies what they have left.
    """
    apart = HeldGradients(model, [task])
    mix, read = mixing_and_reading(model.heads[task.name])
    inner = Cut(mix(cut.features))
    loss = torch.zeros((), device=target.device)
    parts = sliced(target, len(shares), inner.positions)
    for features, part, share in zip(inner.slices(len(shares)), parts, shares, strict=True):
        if share:  # a mean over no label is no number
            loss = loss + _run_slice(read, task, features, part, share)
    inner.land()
    inner.backward()
    apart.take(task.name)
    weight = torch.ones_like(loss) if weighting.late else weight_of(weighting, task.name, loss)
    apart.release({task.name: weight})
    for leaf in cut.leaves:
        if leaf.grad is not None:
            leaf.grad.mul_(weight)
    return loss, weight


def _run_slice(read: Callable, task: Task, features: Tensor, target: Tensor, share: float) -> Tensor:
    loss = task.loss(read(features), target) * share
    if loss.requires_grad:
        loss.backward()
    return loss.detach()


def mixing_and_reading(head: nn.Module) -> tuple[Callable, Callable]:
    """What of a head mixes positions and what treats each by itself: its ``mix`` and ``read``, or nothing and all."""
    mix: Any = getattr(head, "mix", None)
    read: Any = getattr(head, "read", None)
    return (mix, read) if callable(mix) and callable(read) else (lambda features: features, head)


def label_shares(
    tasks: Sequence[Task], targets: Mapping[str, Tensor], positions: int, count: int
) -> dict[str, list[float]]:
    """The share of each task's labels that is in each of ``count`` slices of the features' ``positions``."""
    counts = []
    for task in tasks:
        mask = where_labelled(task, targets[task.name])
        mask = torch.ones_like(targets[task.name], dtype=torch.bool) if mask is None else mask
        counts.append(torch.stack([part.sum() for part in sliced(mask, count, positions)]))
    # One transfer for all the tasks.
    rows = torch.stack(counts).tolist() if counts else []
    return {task.name: [n / sum(row) for n in row] for task, row in zip(tasks, rows, strict=True)}


def revisit(
    weighting: Weighting, model: MultiTaskModel, tasks: Sequence[Task], inputs: Any, targets: Mapping[str, Any]
) -> None:
    """Show a weighting that asks for it the same batch's losses after the update.

    The extra forward pass runs as in training, with one head's output at a time, but leaves the running statistics of
    normalisation layers alone.
    """

    def run(module: nn.Module, values: Any) -> Any:
        return functional_call(module, {name: buffer.clone() for name, buffer in module.named_buffers()}, (values,))

    with torch.no_grad():
        features = run(model.backbone, inputs)
        present = present_tasks(tasks, targets)
        weighting.revisit({t.name: t.loss(run(model.heads[t.name], features), targets[t.name]) for t in present})
