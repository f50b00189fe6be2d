"""Running the heads one by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from mtl.distributed.sharding import is_sharded
from mtl.distributed.sync_batchnorm import waits
from mtl.engine.chunks import chunk_shares, run_chunks
from mtl.engine.packed import can_be_packed, run_packed
from mtl.engine.shares import LabelShares
from mtl.engine.weighting import DeferredGradients, times
from mtl.gradients.cut import Cut
from mtl.model import MultiTaskModel
from mtl.tasks import Task


def run_heads(
    model: MultiTaskModel,
    shard: LabelShares,
    targets: Mapping[str, Any],
    cut: Cut,
    weigh: Callable[[str, Tensor], Tensor],
    held: DeferredGradients | None = None,
    factors: Mapping[str, float] | None = None,
    token_chunks: int = 1,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Forward and backward of each head in turn on the cut features; returns losses and weights by task.

    The losses are this process's parts of them. ``weigh`` gives each task's weight; ``factors`` multiply what goes into
    the trunk. With ``token_chunks`` a head runs on one slice of the positions after the other. Equal linear heads run
    all at once, where that costs no memory. What is kept of the tasks' gradients is in ``cut.rows`` afterwards.
    """
    losses, weights, kind = {}, {}, model.zero_loss().dtype
    here = [task for task in shard.tasks if shard.shares[task.name]]
    if token_chunks == 1 and len(here) == len(shard.tasks) and can_be_packed(model, here, targets, cut.features):
        return run_packed(model, shard, targets, cut, weigh, held, factors)
    slices = chunk_shares(here, targets, cut.positions, token_chunks) if token_chunks > 1 else {}
    for task in shard.tasks:
        name, share = task.name, shard.shares[task.name]
        if not share:  # no label here, but elsewhere
            losses[name], weights[name] = _run_idle(model, task, cut, weigh)
        elif slices:
            losses[name], weights[name] = run_chunks(model, task, targets[name], cut, weigh, slices[name], share)
        else:
            losses[name], weights[name] = _run_head(model, task, targets[name], cut, weigh, share)
        losses[name] = losses[name].to(kind)  # on every rank the same
        if held is not None:
            held.take(name)
        cut.collect(1.0 if factors is None else factors[name])
    return losses, weights


def _run_head(
    model: MultiTaskModel, task: Task, target: Any, cut: Cut, weigh: Callable, share: float
) -> tuple[Tensor, Tensor]:
    # A function of its own, so that nothing of this head's graph is referenced when the next one runs.
    loss = model.loss(task, cut.features, target)
    weight = weigh(task.name, loss)
    if loss.requires_grad:  # not where a head without parameters ignores the features
        loss.backward(times(weight, model.loss_scale * share))
    # A copy: the storage of torch's mean squared error is as large as what it is the mean of.
    return times(loss.detach().clone(), share), weight


def _run_idle(model: MultiTaskModel, task: Task, cut: Cut, weigh: Callable) -> tuple[Tensor, Tensor]:
    """A head that has nothing to learn here: it only does what the other processes wait for."""
    loss = zero_head_loss(model, task, cut.features)
    if loss is not None:
        loss.backward()
    loss = model.zero_loss()
    return loss, weigh(task.name, loss)


def zero_head_loss(model: MultiTaskModel, task: Task, features: Any) -> Tensor | None:
    """Zero, that a head's whole pass is behind, where other processes wait for that; else None."""
    head = model.heads[task.name]
    if not (waits(head) or is_sharded(*head.parameters())):
        return None
    outputs = [output for output in pytree.tree_leaves(model.predict(task.name, features)) if output.requires_grad]
    return torch.stack([output.flatten()[:0].sum() for output in outputs]).sum()
