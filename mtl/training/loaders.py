"""The batches of every split: which samples, in which order, on which device."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mtl.data.loader import Batches, EndlessSampler, Key, RankSampler, closing, sequential
from mtl.distributed.collectives import get_rank, get_world_size, is_distributed
from mtl.system.environment import STREAMS
from mtl.system.timer import StepTimer
from mtl.tasks import CountedTargets, Task, learnable_labels
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


@dataclass
class Loaded:
    """A batch on the device and its samples, or the error in its place; ``copied``: recorded after its copies."""

    batch: tuple[Any, Any] = (None, None)
    indices: list[int] = field(default_factory=list)
    copied: Any = None
    error: Exception | None = None


class DeviceBatches:
    """An iterator over batches on ``device``, timed as ``time/data``; a context, at whose end the loader processes end.

    On a device with streams the next batch is copied while a step runs. Labels are counted on the host, before they are
    copied, so that no step has to ask the device for them. With ``channels_last``, images ``[B, C, H, W]`` have that
    order in memory. ``indices`` are the samples of the latest batch.
    """

    def __init__(
        self,
        batches: Batches,
        timer: StepTimer,
        device: torch.device,
        tasks: Sequence[Task],
        channels_last: bool = False,
    ) -> None:
        self._batches, self._timer = batches, timer
        self._device, self._channels_last = device, channels_last
        self._tasks = [] if device.type == "cpu" else [_on_host(task) for task in tasks]
        self._module: Any = torch.get_device_module(device) if device.type in STREAMS else None
        self._stream = None if self._module is None else self._module.Stream(device)
        self._ahead: Loaded | None = None
        self.indices: list[int] = []
        self._exit = ExitStack()

    def __enter__(self) -> DeviceBatches:
        self._iterator = self._exit.enter_context(closing(self._batches))
        return self

    def __exit__(self, *error: Any) -> None:
        self._exit.close()

    def __next__(self) -> tuple[Any, Mapping[str, Any]]:
        """The next ``(inputs, targets)``."""
        with self._timer.loading():
            loaded = self._ahead or self._load()
            self._ahead = None if self._stream is None else self._load()
            if loaded.error is not None:
                raise loaded.error
            if self._stream is not None:
                self._hand_over(loaded)
            self.indices = loaded.indices
            return loaded.batch

    def _load(self) -> Loaded:
        try:
            batch = next(self._iterator)
        except Exception as error:  # of the next batch: this one is good, and its step comes first
            return Loaded(error=error)
        if self._stream is None:
            return Loaded(self._moved(batch), self._batches.indices)
        with self._module.stream(self._stream):
            return Loaded(self._moved(batch), self._batches.indices, self._stream.record_event())

    def _moved(self, batch: tuple[Any, Mapping[str, Any]]) -> tuple[Any, Mapping[str, Any]]:
        inputs, targets = to_device(batch, self._device, self._channels_last)
        if not self._tasks:
            return inputs, targets
        return inputs, CountedTargets(targets, learnable_labels(self._tasks, batch[1]))

    def _hand_over(self, loaded: Loaded) -> None:
        """The steps' stream waits for the copies, and their memory is not taken again before it is done with them."""
        current = self._module.current_stream(self._device)
        current.wait_event(loaded.copied)
        for leaf in pytree.tree_leaves((loaded.batch[0], dict(loaded.batch[1]))):
            if isinstance(leaf, Tensor):
                leaf.record_stream(current)


def _on_host(task: Task) -> Task:
    """The task as it counts labels: a loss may weigh them by tensors of its own."""
    loss = task.loss
    if isinstance(loss, nn.Module) and [*loss.parameters(), *loss.buffers()]:
        loss = copy.deepcopy(loss).cpu()
    return replace(task, loss=loss, metrics={})


def to_device(values: Any, device: torch.device, channels_last: bool = False) -> Any:
    """Move every tensor of a nesting to ``device``; images ``[B, C, H, W]`` to channels-last memory if asked."""

    def move(tensor: Tensor) -> Tensor:
        order = torch.channels_last if channels_last and tensor.dim() == 4 else torch.preserve_format
        return tensor.to(device, non_blocking=device.type != "mps", memory_format=order)  # see mtl.gradients.transfer

    if device.type == "cpu" and not channels_last:
        return values
    return pytree.tree_map_only(Tensor, move, values)
