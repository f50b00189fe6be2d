"""A head on one chunk of the positions after the other, so that one chunk of its output is alive at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtl.engine.engine import Engine
from mtl.engine.head import Collector, Head
from mtl.engine.step import Step
from mtl.engine.weighting import DeferredGradients, times
from mtl.gradients.cut import Cut, split_positions
from mtl.tasks import Task, where_labelled


class ChunkedHead(Head):
    """A head that runs on ``len(shares)`` chunks of the positions; ``shares``: of the task's labels in each chunk.

    The weight may depend on the loss, which is complete after the last chunk: it multiplies the chunks' gradients then.
    """

    def __init__(self, collector: Collector, task: Task, shares: Sequence[float]) -> None:
        super().__init__(collector, task)
        self._chunk_shares = shares

    def _forward_backward(self, step: Step, cut: Cut) -> tuple[Tensor, Tensor]:
        name, engine = self._task.name, step.engine
        mix, read = split_head(engine.model.heads[name])
        with engine.autocast():
            inner = Cut(mix(cut.features))
        self._collector.penalise(name)
        own = DeferredGradients(engine.model, [self._task])
        loss = self._run_chunks(engine, inner, read, step.targets[name])
        inner.collect()
        inner.backward()
        own.stash(name)
        weight, share = step.task_weights.weight(name, loss), step.shares[name]
        own.apply({name: times(weight, share)})
        for leaf in cut.leaves:
            if leaf.grad is not None:
                leaf.grad.mul_(times(weight, share))
        return times(loss, share), weight

    def _run_chunks(self, engine: Engine, inner: Cut, read: Callable, target: Tensor) -> Tensor:
        loss = torch.zeros((), device=target.device)
        count = len(self._chunk_shares)
        targets = split_positions(target, count, inner.positions)
        for features, own, share in zip(inner.chunks(count), targets, self._chunk_shares, strict=True):
            if share:  # a mean over no label is no number
                loss = loss + self._run_chunk(engine, read, features, own, share)
        return loss

    def _run_chunk(self, engine: Engine, read: Callable, features: Tensor, target: Tensor, share: float) -> Tensor:
        with engine.autocast():
            loss = self._task.loss(read(features), target) * share
        if loss.requires_grad:
            loss.backward(torch.full_like(loss, engine.precision.scale))
        return loss.detach()


def split_head(head: nn.Module) -> tuple[Callable, Callable]:
    """The part of a head that mixes positions, and the part that treats each by itself.

    Its methods ``mix`` and ``read``, where it has both; else nothing, and the head.
    """
    mix: Any = getattr(head, "mix", None)
    read: Any = getattr(head, "read", None)
    return (mix, read) if callable(mix) and callable(read) else (lambda features: features, head)


def chunk_shares(
    tasks: Sequence[Task], targets: Mapping[str, Tensor], positions: int, count: int
) -> dict[str, list[float]]:
    """The share of each task's labels in each of ``count`` chunks of the features' ``positions``."""
    counts = []
    for task in tasks:
        mask = where_labelled(task, targets[task.name])
        mask = torch.ones_like(targets[task.name], dtype=torch.bool) if mask is None else mask
        counts.append(torch.stack([part.sum() for part in split_positions(mask, count, positions)]))
    # One transfer for all the tasks.
    rows = torch.stack(counts).tolist() if counts else []
    return {task.name: [n / sum(row) for n in row] for task, row in zip(tasks, rows, strict=True)}
