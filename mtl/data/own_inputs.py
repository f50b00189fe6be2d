"""A split of tasks with inputs of their own: which sample of each task stands where in an epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import Dataset

from mtl.data.metadata import digest

Items = Sequence[tuple[Any, int]]  # what is read, and its class

Targets = dict[str, Tensor]


class OwnInputs(Dataset):
    """Sample i has an input of every task, or, with ``seed=None``, of those with more than i of them.

    ``items`` maps a task to its samples, and ``read`` makes a batch of inputs of what stands in them. With a seed the
    epoch is as long as the largest task; a smaller one starts over when it ends, so that each of its samples is used
    equally often. ``names`` are those of all samples, task after task.
    """

    def __init__(
        self,
        items: Mapping[str, Items],
        read: Callable[[list[Any]], Any],
        names: Sequence[str],
        seed: int | None = None,
    ) -> None:
        self._items, self._read, self.names = items, read, names
        self.digest = digest([label for own in items.values() for _, label in own])
        self._order = None
        if seed is not None:
            rngs = (np.random.default_rng((seed, number)) for number in range(len(items)))
            self._order = {task: rng.permutation(len(items[task])) for task, rng in zip(items, rngs, strict=True)}

    def __len__(self) -> int:
        return max(map(len, self._items.values()))

    def __getitem__(self, index: int) -> tuple[dict[str, Any], Targets]:
        return pytree.tree_map(lambda own: own[0], self.batch([index], epoch=0))

    def samples(self, task: str, indices: Sequence[int]) -> list[int]:
        """The ``indices`` for which a task has a sample."""
        return list(indices) if self._order is not None else [i for i in indices if i < len(self._items[task])]

    def batch(self, indices: Sequence[int], epoch: int) -> tuple[dict[str, Any], Targets]:
        """The samples of ``indices`` in this epoch, for each task that has one."""
        inputs, targets = {}, {}
        for task, items in self._items.items():
            own = [items[self.position(task, index, epoch)] for index in self.samples(task, indices)]
            if own:
                inputs[task] = self._read([item for item, _ in own])
                targets[task] = torch.tensor([label for _, label in own])
        return inputs, targets

    def position(self, task: str, index: int, epoch: int) -> int:
        """Which of a task's samples stands at an index."""
        if self._order is None:
            return index
        # A smaller task continues over epochs: the next one starts with the first sample that this one did not reach.
        order = self._order[task]
        return int(order[(epoch * len(self) + index) % len(order)])
