"""Running the heads one by one, and holding back their gradients where a weight is known only afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from mtl import distributed
from mtl.cut import Cut, sliced
from mtl.model import MultiTaskModel, Task, loss_modules, where_labelled
from mtl.strategies.packed import can_be_packed, run_packed
from mtl.strategies.shard import Shard, shard_of
from mtl.sync_batchnorm import waits
from mtl.weightings import Weighting, slope_of, weight_of


def check_chunks(token_chunks: int) -> None:
    """ValueError unless it is a number of slices."""
    if token_chunks < 1:
        raise ValueError(f"token_chunks={token_chunks} must be 1 or more.")


class Weights:
    """How a weighting's weights come about in one step.

    Most are known from the task's own loss when its head has run. Where only the whole batch's loss tells, because the
    weighting needs all tasks' first or, with several processes, because its weights depend on the loss that each has
    only a part of, they are ``late``: one until ``after`` says them.
    """

    def __init__(self, weighting: Weighting, shard: Shard, loss_scale: float) -> None:
        self._weighting, self._loss_scale = weighting, loss_scale
        self._apart = distributed.active()
        self.late = bool(shard.tasks) and (weighting.late or (self._apart and not weighting.affine))

    def now(self, task: str, loss: Tensor) -> Tensor:
        """A task's weight when its head has run."""
        if self.late:
            return torch.ones_like(loss)
        if self._apart:
            return slope_of(self._weighting, task, loss)
        return weight_of(self._weighting, task, loss, self._loss_scale)

    def after(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The late weights, from the whole losses of all tasks."""
        if self._weighting.late:
            return self._weighting.weights(losses)
        return {task: weight_of(self._weighting, task, loss, self._loss_scale) for task, loss in losses.items()}

    def learn(self, losses: Mapping[str, Tensor]) -> None:
        """Let what the weighting learns have its gradient from the whole losses, where it has none yet."""
        if self._apart and not self.late and next(self._weighting.parameters(), None) is not None:
            self.after(losses)


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
    shard: Shard,
    targets: Mapping[str, Any],
    cut: Cut,
    weigh: Callable[[str, Tensor], Tensor],
    held: HeldGradients | None = None,
    factors: Mapping[str, float] | None = None,
    token_chunks: int = 1,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Forward and backward of each head in turn on the cut features; returns losses and weights by task.

    The losses are this process's parts of them. ``weigh`` gives each task's weight; ``factors`` multiply what goes into
    the trunk. With ``token_chunks`` a head runs on one slice of the positions after the other. Equal linear heads run
    all at once, where that costs no memory. What is kept of the tasks' gradients is in ``cut.rows`` afterwards.
    """
    losses, weights, kind = {}, {}, model.no_loss().dtype
    here = [task for task in shard.tasks if shard.shares[task.name]]
    if token_chunks == 1 and len(here) == len(shard.tasks) and can_be_packed(model, here, targets, cut.features):
        return run_packed(model, shard, targets, cut, weigh, held, factors)
    slices = label_shares(here, targets, cut.positions, token_chunks) if token_chunks > 1 else {}
    for task in shard.tasks:
        name, share = task.name, shard.shares[task.name]
        if not share:  # no label here, but elsewhere
            losses[name], weights[name] = _run_idle(model, task, cut, weigh)
        elif slices:
            losses[name], weights[name] = _run_slices(model, task, targets[name], cut, weigh, slices[name], share)
        else:
            losses[name], weights[name] = _run_head(model, task, targets[name], cut, weigh, share)
        losses[name] = losses[name].to(kind)  # on every rank the same
        if held is not None:
            held.take(name)
        cut.land(1.0 if factors is None else factors[name])
    return losses, weights


def _run_head(
    model: MultiTaskModel, task: Task, target: Any, cut: Cut, weigh: Callable, share: float
) -> tuple[Tensor, Tensor]:
    # A function of its own, so that nothing of this head's graph is referenced when the next one runs.
    loss = model.loss(task, cut.features, target)
    weight = weigh(task.name, loss)
    if loss.requires_grad:  # not where a head without parameters ignores the features
        loss.backward(_times(weight, model.loss_scale * share))
    # A copy: the storage of torch's mean squared error is as large as what it is the mean of.
    return _times(loss.detach().clone(), share), weight


def _run_idle(model: MultiTaskModel, task: Task, cut: Cut, weigh: Callable) -> tuple[Tensor, Tensor]:
    """A head that has nothing to learn here: it only does what the other processes wait for."""
    loss = idle_loss(model, task, cut.features)
    if loss is not None:
        loss.backward()
    loss = model.no_loss()
    return loss, weigh(task.name, loss)


def idle_loss(model: MultiTaskModel, task: Task, features: Any) -> Tensor | None:
    """Zero, that a head's whole pass is behind, where other processes wait for that; else None."""
    head = model.heads[task.name]
    if not (waits(head) or distributed.is_sharded(*head.parameters())):
        return None
    outputs = [output for output in pytree.tree_leaves(model.predict(task.name, features)) if output.requires_grad]
    return torch.stack([output.flatten()[:0].sum() for output in outputs]).sum()


def _run_slices(
    model: MultiTaskModel,
    task: Task,
    target: Tensor,
    cut: Cut,
    weigh: Callable,
    parts_of_labels: Sequence[float],
    share: float,
) -> tuple[Tensor, Tensor]:
    """As _run_head, with the head's output alive for one slice of the positions at a time.

    The weight may depend on the loss, which is whole after the last slice only: it multiplies what they have left.
    """
    apart = HeldGradients(model, [task])
    mix, read = mixing_and_reading(model.heads[task.name])
    with model.autocast():
        inner = Cut(mix(cut.features))
    loss = torch.zeros((), device=target.device)
    parts = sliced(target, len(parts_of_labels), inner.positions)
    for features, part, labels in zip(inner.slices(len(parts_of_labels)), parts, parts_of_labels, strict=True):
        if labels:  # a mean over no label is no number
            loss = loss + _run_slice(model, read, task, features, part, labels)
    inner.land()
    inner.backward()
    apart.take(task.name)
    weight = weigh(task.name, loss)
    apart.release({task.name: _times(weight, share)})
    for leaf in cut.leaves:
        if leaf.grad is not None:
            leaf.grad.mul_(_times(weight, share))
    return _times(loss, share), weight


def _run_slice(
    model: MultiTaskModel, read: Callable, task: Task, features: Tensor, target: Tensor, labels: float
) -> Tensor:
    with model.autocast():
        loss = task.loss(read(features), target) * labels
    if loss.requires_grad:
        loss.backward(torch.full_like(loss, model.loss_scale))
    return loss.detach()


def _times(value: Tensor, factor: float) -> Tensor:
    return value if factor == 1 else value * factor


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

    with torch.no_grad(), model.by_itself():
        shard = shard_of(tasks, inputs, targets)
        with model.autocast():
            features = run(model.backbone, inputs)
        losses = {}
        for task in shard.tasks:
            share, loss = shard.shares[task.name], model.no_loss()
            if share:
                with model.autocast():
                    loss = task.loss(run(model.heads[task.name], features), targets[task.name]).to(loss)
            elif waits(model.heads[task.name]):
                with model.autocast():
                    run(model.heads[task.name], features)
            losses[task.name] = _times(loss, share)
        weighting.revisit(shard.whole(losses))
