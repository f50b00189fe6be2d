"""The deterministic peak-memory instrument: it counts live tensor storages, on any device."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class PeakMemory(TorchDispatchMode):
    """Measures the peak of the bytes in tensor storages that are made while it is active.

    Use it as a context manager and read ``peak`` afterwards. Storages from before are not counted, so free the
    gradients first when a training step is measured. Workspaces inside kernels are not seen; in exchange the
    number is the same on every run, unlike the process's high-water mark.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation, then count the storages it made."""
        given = {id(s) for s in _storages((args, kwargs or {}))}
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            if id(storage) not in self._known and id(storage) not in given:
                self._count(storage)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, key, size).atexit = False

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


@contextmanager
def without_data() -> Iterator[None]:
    """Tensors made inside have shapes and storages but no data, and no operation on them computes anything.

    A training step with PeakMemory inside takes a second, whatever its size, and counts the bytes of a real one. A
    question for a number, as whether there is a label, is answered with one.
    """
    with FakeTensorMode(), _Ones():
        yield


class _Ones(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1
        return func(*args, **(kwargs or {}))


def _storages(values: Any) -> list[torch.UntypedStorage]:
    return [value.untyped_storage() for value in pytree.tree_leaves(values) if isinstance(value, torch.Tensor)]
