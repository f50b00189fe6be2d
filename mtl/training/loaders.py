"""The batches of every split: which samples, in which order, on which device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from mtl.data.loader import Batches, EndlessSampler, Key, RankSampler, closing, sequential
from mtl.distributed.collectives import get_rank, get_world_size, is_distributed
from mtl.system.timer import StepTimer
from mtl.tasks import Task
from mtl.training.schedule import Plan
from mtl.training.state import TrainState


def train_batches(data: Any, cfg: Any, state: TrainState, plan: Plan) -> Batches:
    """The training batches from the state's next step on, without an end; shuffled unless the run is to overfit."""
    sampler = EndlessSampler(
        len(data.train),
        plan.batch_size,
        per_epoch=plan.per_epoch * plan.batches,
        seed=cfg.seed,
        start=state.step * plan.batches,
        shuffle=not cfg.trainer.overfit_batches,
    )
    return _batches(data.train, "train", sampler, cfg, state.tasks, state.unreadable)


def eval_batches(
    data: Any, split: str, cfg: Any, tasks: Sequence[Task], unreadable: dict[str, list[int]] | None = None
) -> Batches:
    """One pass over a split in its own order, as far as the trainer's limits go.

    Samples that cannot be read, and are skipped, are added to ``unreadable``, by split.
    """
    trainer = cfg.trainer
    dataset = data.train if trainer.overfit_batches and split == "val" else getattr(data, split)
    limit = 1 if trainer.fast_dev_run else trainer.overfit_batches or trainer.limit_val_batches
    return _batches(dataset, split, sequential(len(dataset), data.batch_size, limit), cfg, tasks, unreadable)


def _batches(
    dataset: Any,
    split: str,
    keys: Iterable[Key],
    cfg: Any,
    tasks: Sequence[Task],
    unreadable: dict[str, list[int]] | None,
) -> Batches:
    return Batches(
        dataset,
        RankSampler(keys, get_rank(), get_world_size()) if is_distributed() else keys,
        cfg.seed,
        cfg.trainer.num_workers,
        split=split,
        labels={task.name: task.labels for task in tasks if task.labels is not None},
        on_error=cfg.data.get("on_error", "raise"),
        unreadable=None if unreadable is None else unreadable.setdefault(split, []),
    )


class DeviceBatches:
    """An iterator over batches on ``device``, timed as ``time/data``; a context, at whose end the loader processes end.

    With ``channels_last``, images ``[B, C, H, W]`` have that order in memory.
    """

    def __init__(self, batches: Batches, timer: StepTimer, device: torch.device, channels_last: bool) -> None:
        self._batches, self._timer = batches, timer
        self._device, self._channels_last = device, channels_last
        self._exit = ExitStack()

    def __enter__(self) -> DeviceBatches:
        self._iterator = self._exit.enter_context(closing(self._batches))
        return self

    def __exit__(self, *error: Any) -> None:
        self._exit.close()

    def __next__(self) -> tuple[Any, Mapping[str, Any]]:
        """The next ``(inputs, targets)``."""
        with self._timer.loading():
            return to_device(next(self._iterator), self._device, self._channels_last)

    @property
    def indices(self) -> list[int]:
        """The samples of the latest batch."""
        return self._batches.indices


def to_device(values: Any, device: torch.device, channels_last: bool = False) -> Any:
    """Move every tensor of a nesting to ``device``; images ``[B, C, H, W]`` to channels-last memory if asked."""

    def move(tensor: Tensor) -> Tensor:
        order = torch.channels_last if channels_last and tensor.dim() == 4 else torch.preserve_format
        return tensor.to(device, non_blocking=True, memory_format=order)

    if device.type == "cpu" and not channels_last:
        return values
    return pytree.tree_map_only(Tensor, move, values)
