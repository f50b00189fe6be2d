"""A head on one slice of the positions after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtl.engine.weighting import DeferredGradients, times
from mtl.gradients.cut import Cut, split_positions
from mtl.model import MultiTaskModel
from mtl.tasks import Task, where_labelled


def check_chunks(token_chunks: int) -> None:
    """ValueError unless it is a number of slices."""
    if token_chunks < 1:
        raise ValueError(f"token_chunks={token_chunks} must be 1 or more.")


def run_chunks(
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
    apart = DeferredGradients(model, [task])
    mix, read = split_head(model.heads[task.name])
    with model.autocast():
        inner = Cut(mix(cut.features))
    loss = torch.zeros((), device=target.device)
    parts = split_positions(target, len(parts_of_labels), inner.positions)
    for features, part, labels in zip(inner.slices(len(parts_of_labels)), parts, parts_of_labels, strict=True):
        if labels:  # a mean over no label is no number
            loss = loss + _run_chunk(model, read, task, features, part, labels)
    inner.collect()
    inner.backward()
    apart.take(task.name)
    weight = weigh(task.name, loss)
    apart.release({task.name: times(weight, share)})
    for leaf in cut.leaves:
        if leaf.grad is not None:
            leaf.grad.mul_(times(weight, share))
    return times(loss, share), weight


def _run_chunk(
    model: MultiTaskModel, read: Callable, task: Task, features: Tensor, target: Tensor, labels: float
) -> Tensor:
    with model.autocast():
        loss = task.loss(read(features), target) * labels
    if loss.requires_grad:
        loss.backward(torch.full_like(loss, model.loss_scale))
    return loss.detach()


def split_head(head: nn.Module) -> tuple[Callable, Callable]:
    """What of a head mixes positions and what treats each by itself: its ``mix`` and ``read``, or nothing and all."""
    mix: Any = getattr(head, "mix", None)
    read: Any = getattr(head, "read", None)
    return (mix, read) if callable(mix) and callable(read) else (lambda features: features, head)


def chunk_shares(
    tasks: Sequence[Task], targets: Mapping[str, Tensor], positions: int, count: int
) -> dict[str, list[float]]:
    """The share of each task's labels that is in each of ``count`` slices of the features' ``positions``."""
    counts = []
    for task in tasks:
        mask = where_labelled(task, targets[task.name])
        mask = torch.ones_like(targets[task.name], dtype=torch.bool) if mask is None else mask
        counts.append(torch.stack([part.sum() for part in split_positions(mask, count, positions)]))
    # One transfer for all the tasks.
    rows = torch.stack(counts).tolist() if counts else []
    return {task.name: [n / sum(row) for n in row] for task, row in zip(tasks, rows, strict=True)}
