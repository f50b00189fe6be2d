"""A split of tasks with inputs of their own: which sample of each task stands where in an epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import Dataset

from mtl.data.metadata import digest
from mtl.data.mixture import Mixture

Items = Sequence[tuple[Any, int]]  # what is read, and its class

Targets = dict[str, Tensor]


class OwnInputs(Dataset):
    """Sample i has an input of those tasks that the ``mixture`` says, or without one, that have more than i of them.

    ``items`` maps a task to its samples, and ``read`` makes a batch of inputs of what stands in them. An epoch is as
    long as the largest task. ``names`` are those of all samples, task after task.
    """

    def __init__(
        self,
        items: Mapping[str, Items],
        read: Callable[[list[Any]], Any],
        names: Sequence[str],
        mixture: Mixture | None = None,
    ) -> None:
        self._items, self._read, self.names, self._mixture = items, read, names, mixture
        self.digest = digest([label for own in items.values() for _, label in own])

    def __len__(self) -> int:
        return max(map(len, self._items.values()))

    def __getitem__(self, index: int) -> tuple[dict[str, Any], Targets]:
        return pytree.tree_map(lambda own: own[0], self.batch([index], epoch=0))

    def samples(self, task: str, indices: Sequence[int]) -> list[int]:
        """The ``indices`` for which a task has a sample."""
        if self._mixture is not None:
            return self._mixture.places(task, indices)
        return [i for i in indices if i < len(self._items[task])]

    def batch(self, indices: Sequence[int], epoch: int) -> tuple[dict[str, Any], Targets]:
        """The samples of ``indices`` in this epoch, for each task that has one."""
        inputs, targets = {}, {}
        for task, items in self._items.items():
            own = [items[self._position(task, index, epoch)] for index in self.samples(task, indices)]
            if own:
                inputs[task] = self._read([item for item, _ in own])
                targets[task] = torch.tensor([label for _, label in own])
        return inputs, targets

    def chance_of_one(self, task: str, batch_size: int) -> float:
        """How probable it is that a batch has just one sample of a task."""
        return 0.0 if self._mixture is None else self._mixture.chance_of_one(task, batch_size)

    def _position(self, task: str, index: int, epoch: int) -> int:
        return index if self._mixture is None else self._mixture.sample(task, index, epoch)
