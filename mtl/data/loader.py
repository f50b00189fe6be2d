"""Batches in an order, and with a randomness, that depend on the seed, the epoch and the sample alone."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

Key = tuple[int, list[int]]  # an epoch and the indices of one batch


class Shuffled(Sampler[Key]):
    """The batches of an endless training run, from batch number ``start`` on, as ``(epoch, indices)``.

    The order within an epoch is a function of ``(seed, epoch)``, so batch number n is the same however the run came
    to it. The last, smaller batch of an epoch is dropped, unless it is the only one. With ``shuffle=False`` every
    epoch is the first one over again, in the data's own order.
    """

    def __init__(self, size: int, batch_size: int, per_epoch: int, seed: int, start: int = 0, shuffle: bool = True):
        self._size, self._batch_size, self._per_epoch = size, batch_size, per_epoch
        self._seed, self._start, self._shuffle = seed, start, shuffle

    def __iter__(self) -> Iterator[Key]:
        epoch, batch = divmod(self._start, self._per_epoch)
        while True:
            order = np.arange(self._size)
            if self._shuffle:
                order = np.random.default_rng((self._seed, epoch)).permutation(self._size)
            while batch < self._per_epoch:
                yield (
                    (epoch if self._shuffle else 0),
                    order[batch * self._batch_size : (batch + 1) * self._batch_size].tolist(),
                )
                batch += 1
            epoch, batch = epoch + 1, 0


def in_order(size: int, batch_size: int, limit: int | None = None) -> list[Key]:
    """The batches of one pass in the data's own order, the last one smaller; at most ``limit`` of them."""
    starts = range(0, size, batch_size)[:limit]
    return [(0, list(range(start, min(start + batch_size, size)))) for start in starts]


def make_loader(dataset: Any, keys: Any, seed: int, num_workers: int) -> DataLoader:
    """A torch DataLoader over ``keys``, whose items are whole batches ``(inputs, targets)``."""
    return DataLoader(
        _Batches(dataset, seed),
        batch_size=None,
        sampler=keys,
        num_workers=num_workers,
        generator=torch.Generator().manual_seed(seed),  # else every pass would draw from the global one
        pin_memory=torch.cuda.is_available(),
    )


class _Batches(Dataset):
    def __init__(self, dataset: Any, seed: int) -> None:
        self._dataset, self._seed = dataset, seed

    def __getitem__(self, key: Key) -> Any:
        epoch, indices = key
        if hasattr(self._dataset, "batch"):
            return self._dataset.batch(indices, epoch)
        return default_collate([self._sample(epoch, index) for index in indices])

    def _sample(self, epoch: int, index: int) -> Any:
        # Whatever generator an augmentation draws from, it draws the same for the same sample in the same epoch,
        # with any number of workers and after a resume.
        with _seeded((self._seed, epoch, index)):
            return self._dataset[index]


@contextmanager
def _seeded(key: Sequence[int]) -> Iterator[None]:
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
