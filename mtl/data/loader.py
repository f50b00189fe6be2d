"""Batches whose order and augmentation depend on the seed, the epoch and the sample alone."""

from __future__ import annotations

import logging
import random
import statistics
import traceback
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from mtl.data.labels import Labels
from mtl.errors import RunError, first_line, own_line
from mtl.system.signals import ignore_in_worker

log = logging.getLogger(__name__)

Key = tuple[int, list[int]]  # the epoch and the indices of one batch


class EndlessSampler(Sampler[Key]):
    """The batches ``(epoch, indices)`` of an endless training run, from batch number ``start`` on.

    The order within an epoch is a function of ``(seed, epoch)``, so batch n is the same in a run that was resumed. The
    last, smaller batch of an epoch is dropped, unless it is the only one. With ``shuffle=False`` every epoch has the
    data set's order and repeats the augmentation of the first.
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


def sequential(size: int, batch_size: int, limit: int | None = None) -> list[Key]:
    """The batches of one pass in the data set's order, at most ``limit`` of them; the last may be smaller."""
    starts = range(0, size, batch_size)[:limit]
    return [(0, list(range(start, min(start + batch_size, size)))) for start in starts]


class RankSampler(Sampler[Key]):
    """One rank's share of every batch; the shares of ``count`` ranks differ by one sample at most.

    Every sample belongs to exactly one rank. A batch without a sample for this rank is skipped.
    """

    def __init__(self, keys: Iterable[Key], rank: int, count: int) -> None:
        self._keys, self._rank, self._count = keys, rank, count

    def __iter__(self) -> Iterator[Key]:
        for epoch, indices in self._keys:
            size = len(indices)
            part = indices[size * self._rank // self._count : size * (self._rank + 1) // self._count]
            if part:
                yield epoch, part


class DataError(RunError):
    """A sample that cannot be read, or a target that its loss does not accept; the first line names it."""


class Batches:
    """Batches ``(inputs, targets)`` of a split, read by a torch DataLoader over ``keys``.

    A sample that cannot be read raises a DataError with its index. With ``on_error="skip"`` it is a warning instead:
    the index is appended to ``unreadable`` and the batch continues without the sample. Targets that do not fit
    ``labels`` (task -> accepted targets) raise a DataError. ``indices`` are the samples of the latest batch.
    """

    def __init__(
        self,
        dataset: Any,
        keys: Any,
        seed: int,
        num_workers: int = 0,
        *,
        split: str = "train",
        labels: Mapping[str, Labels] | None = None,
        on_error: str = "raise",
        unreadable: list[int] | None = None,
    ) -> None:
        self._dataset, self._split, self._skips = dataset, split, on_error == "skip"
        self.unreadable = [] if unreadable is None else unreadable
        self.indices: list[int] = []
        self._loader = DataLoader(
            _Reader(dataset, seed, dict(labels or {})),
            batch_size=None,
            sampler=keys,
            num_workers=num_workers,
            generator=torch.Generator().manual_seed(seed),  # otherwise every pass would draw from the global one
            pin_memory=torch.cuda.is_available() or torch.xpu.is_available(),
            worker_init_fn=ignore_in_worker,
        )

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        for read in self._loader:
            for index, reason in read.failures.items():
                sentence = f"{self._split} sample {own_indices(self._dataset, [index])[0]} cannot be read: {reason}"
                if not self._skips:
                    first, line, trace = sentence.partition("\n")
                    raise DataError(f"{first}; data.on_error=skip leaves such samples out.{line}{trace}")
                if self._split == "train" and not read.indices:
                    raise DataError(sentence)
                if index not in self.unreadable:
                    self.unreadable.append(index)
                    log.warning("LEFT OUT: %s", first_line(sentence))
            if not read.indices:
                continue
            if read.label_error is not None:
                raise DataError(f"{self._split} samples: {read.label_error}.")
            self.indices = own_indices(self._dataset, read.indices)
            yield read.batch


@contextmanager
def closing(batches: Iterable) -> Iterator[Iterator[Any]]:
    """Iterate over batches; on leaving the context, by an error too, the loader's worker processes are closed.

    Otherwise Python would, at its exit, send them SIGTERM, which they ignore, and wait for them.
    """
    iterator = iter(batches)
    try:
        yield iterator
    finally:
        if isinstance(iterator, Generator):
            iterator.close()


class _LoadedBatch(NamedTuple):
    """What a worker process returns. Errors are text, because the DataLoader would reword exceptions."""

    batch: Any
    indices: list[int]
    failures: dict[int, str]
    label_error: str | None


class _Reader(Dataset):
    def __init__(self, dataset: Any, seed: int, labels: dict[str, Labels]) -> None:
        self._dataset, self._seed, self._labels = dataset, seed, labels

    def __getitem__(self, key: Key) -> _LoadedBatch:
        epoch, indices = key
        failures: dict[int, str] = {}
        try:
            batch = self._batch(epoch, indices)
        except Exception:
            batch, indices, failures = self._read_individually(epoch, indices)
        if not indices:
            return _LoadedBatch(None, [], failures, None)
        return _LoadedBatch(batch, indices, failures, self._label_error(batch, indices))

    def _batch(self, epoch: int, indices: list[int]) -> Any:
        if hasattr(self._dataset, "batch"):
            return self._dataset.batch(indices, epoch)
        samples = [self._sample(epoch, index) for index in indices]
        if len({frozenset(own[1]) for own in samples if _has_targets(own)}) > 1:  # torch would take the first one's
            raise ValueError("the targets of the samples have different keys")
        return default_collate(samples)

    def _sample(self, epoch: int, index: int) -> Any:
        # An augmentation may draw from any global generator. Seeding them all per sample and epoch makes its draws the
        # same with any number of workers and after a resume.
        with _seeded((self._seed, epoch, index)):
            return self._dataset[index]

    def _read_individually(self, epoch: int, indices: list[int]) -> tuple[Any, list[int], dict[int, str]]:
        """Read the samples one at a time to find those that cannot be read or have other shapes; batch the rest."""
        failures: dict[int, str] = {}
        forms: dict[int, dict[str, Any]] = {}
        for index in indices:
            try:
                forms[index] = _form(self._batch(epoch, [index]))
            except Exception as error:
                failures[index] = self._describe(error, index)
        if forms and not hasattr(self._dataset, "batch"):
            wanted = statistics.mode(str(form) for form in forms.values())  # of most; the first where there are several
            like = next(index for index, form in forms.items() if str(form) == wanted)
            for index in [index for index, form in forms.items() if str(form) != wanted]:
                said = own_indices(self._dataset, [like])[0]
                failures[index] = _difference(forms.pop(index), forms[like], said)
        good = [*forms]
        return (self._batch(epoch, good) if good else None), good, failures

    def _describe(self, error: Exception, index: int) -> str:
        path = getattr(self._dataset, "path", None)
        where = f" ({path(index)})" if callable(path) else ""
        trace = "".join(traceback.format_exception(error))
        place = own_line(error)
        where += f" ({place})" if place else ""
        return f"{type(error).__name__}: {first_line(error)}{where}\n{trace}"

    def _label_error(self, batch: Any, indices: list[int]) -> str | None:
        if not self._labels:
            return None
        targets = batch[1]
        if not isinstance(targets, Mapping):
            return f"the targets are a {type(targets).__name__}, not a dict of them"
        own = getattr(self._dataset, "samples", lambda task, indices: own_indices(self._dataset, indices))
        for task, labels in self._labels.items():
            if task in targets and (error := labels.check(task, targets[task], own(task, indices))):
                return error
        return None


def own_indices(dataset: Any, indices: list[int]) -> list[int]:
    """The samples of a split by their indices in the data set of which it is a part, where it says so."""
    own = getattr(dataset, "own_indices", None)
    return indices if own is None else own(indices)


def _has_targets(sample: Any) -> bool:
    return isinstance(sample, tuple | list) and len(sample) == 2 and isinstance(sample[1], Mapping)


def _form(batch: Any) -> dict[str, Any]:
    """The shapes of the tensors in a batch of one sample, without the first axis, by their places in words."""
    form = {}
    for path, leaf in pytree.tree_flatten_with_path(batch)[0]:
        place = pytree.keystr(path)
        key = place[3:].strip("[']")
        named = f"the target {key}" if place.startswith("[1]") else f"the input {place[3:]}".strip()
        shape = getattr(leaf, "shape", None)
        form[named] = type(leaf).__name__ if shape is None else list(shape[1:])
    return form


def _difference(form: Mapping[str, Any], other: Mapping[str, Any], index: int) -> str:
    """What a sample has that the sample ``index`` has not, or not so, in words."""
    place = next(place for place in {**other, **form} if form.get(place) != other.get(place))
    here, there = (f"has the shape {own[place]}" if place in own else "is missing" for own in (form, other))
    words = f"{place} {here}, and in sample {index} {there.removeprefix('has ')}; a batch takes one form"
    gap = "" if place in form and place in other else " (a missing label is -100 for a class and NaN for a number)"
    return words + gap


@contextmanager
def _seeded(key: Sequence[int]) -> Iterator[None]:
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also seed the devices, whose state is not restored here, and record stack traces.
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
