"""Gradient accumulation: an optimizer step from several batches, of the whole of which no graph fits in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

from mtl.engine.look import rate_of_shared
from mtl.engine.result import StepResult

Batch = tuple[Any, Any]  # inputs and targets


class RecomputedChunks(nn.Module):
    """A trunk that runs on ``count`` chunks of a batch, one after the other, keeping no graph but one chunk's.

    The features are those of the whole batch, and so the heads and a rule see the large batch. On the way back each
    chunk runs forward once more (activation checkpointing over chunks), with the same random numbers. Batch
    normalisation sees one chunk at a time.
    """

    def __init__(self, trunk: nn.Module, count: int) -> None:
        super().__init__()
        self.trunk, self.count = trunk, count

    def forward(self, inputs: Any) -> Any:
        """The features of all chunks together."""
        leaves, structure = pytree.tree_flatten(inputs)
        split = [x.tensor_split(self.count) if isinstance(x, Tensor) else [x] * self.count for x in leaves]
        chunks = [pytree.tree_unflatten(list(chunk), structure) for chunk in zip(*split, strict=True)]
        features = [checkpoint(self._run, chunk, use_reentrant=False) for chunk in chunks]
        return pytree.tree_map(lambda *parts: torch.cat(parts) if isinstance(parts[0], Tensor) else parts[0], *features)

    def _run(self, chunk: Any) -> Any:
        # A copy: a trunk that normalises its inputs in place would do it once more on the way back.
        return self.trunk(pytree.tree_map_only(Tensor, torch.clone, chunk))


def accumulate(
    state: Any, first: Batch, next_batch: Callable[[], Batch], count: int, **asked: bool
) -> tuple[StepResult, Batch]:
    """The mean of ``count`` batches' gradients, each by a strategy's step of its own, in ``.grad``; and the last batch.

    Each batch has its own weights. The losses and weights in the result are means over the batches that have the task;
    the measurements that are ``asked`` for (``measure``, ``audit``) are of the last batch. A strategy that takes
    several batches a step is shown them all, and steps on the last one.
    """
    if state.strategy.draws > 1:
        return _draw(state, first, next_batch, **asked)
    batch, results = first, []
    for number in range(count):
        last = number == count - 1
        if number:
            batch = next_batch()
        with nullcontext() if last else state.engine.no_sync():
            only_last = {name: value and last for name, value in asked.items()}
            results.append(state.strategy.run(state.engine, *batch, **only_last))
    if count == 1:
        return results[0], batch
    for group in state.optimizer.param_groups:
        for p in group["params"]:
            if p.grad is not None:
                p.grad.div_(count)
    names = [task.name for task in state.tasks]
    losses = _means([result.losses for result in results], names)
    weights = _means([result.weights for result in results], names)
    return replace(results[-1], losses=losses, weights=weights, measured=list(results[-1].losses)), batch


def _draw(state: Any, first: Batch, next_batch: Callable[[], Batch], **asked: bool) -> tuple[StepResult, Batch]:
    batches = [first, *(next_batch() for _ in range(state.strategy.draws - 1))]
    rates = {group["name"]: float(group["lr"]) for group in state.optimizer.param_groups}
    state.strategy.look(state.engine, batches, rate_of_shared(rates))
    return state.strategy.run(state.engine, *batches[-1], **asked), batches[-1]


def _means(results: Sequence[Mapping[str, Tensor]], tasks: Sequence[str]) -> dict[str, Tensor]:
    seen = {task: [result[task] for result in results if task in result] for task in tasks}
    return {task: torch.stack(values).mean() for task, values in seen.items() if values}
