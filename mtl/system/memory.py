"""The peak memory of a step, counted in live tensor storages on any device, and errors of memory that ran out."""

from __future__ import annotations

import resource
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from mtl.errors import first_line


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of the tensor storages that are made while it is active, and keeps their peak.

    Use it as a context manager and read ``peak``, in bytes, afterwards. Storages from before are not counted: free the
    gradients before a training step is measured. Workspaces inside kernels are not counted either; in exchange the
    number is the same in every run, unlike the process's high-water mark.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._counted: set[int] = set()

    def __torch_dispatch__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation, then count the storages it made."""
        inputs = {id(s) for s in _storages((args, kwargs or {}))}
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            if id(storage) not in self._counted and id(storage) not in inputs:
                self._count(storage)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        self._counted.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, key, size).atexit = False

    def _free(self, key: int, size: int) -> None:
        self._counted.discard(key)
        self.live -= size


@contextmanager
def without_data() -> Iterator[None]:
    """Make torch's fake tensors: they have shapes and storages but no data, and operations on them compute nothing.

    PeakMemory inside this context counts the bytes of a real training step of any size within a second. Where code
    reads a number from a tensor (``item()``, as in "is there a label?"), it gets 1.
    """
    with FakeTensorMode(), _ItemIsOne():
        yield


class _ItemIsOne(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1
        return func(*args, **(kwargs or {}))


def _storages(values: Any) -> list[torch.UntypedStorage]:
    return [value.untyped_storage() for value in pytree.tree_leaves(values) if isinstance(value, torch.Tensor)]


class OutOfMemory(MemoryError):
    """Memory ran out in a step. The message gives the step, the peak, and settings that take less memory."""


@contextmanager
def explained(state: Any) -> Iterator[None]:
    """Turn out-of-memory errors of the device and of the CPU allocator into an OutOfMemory that suggests a remedy.

    ``state`` is the run's TrainState. No setting is changed automatically: another batch size is another result.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            f"Out of memory at step {state.step + 1} ({first_line(error)}); the peak was {_peak(state)}. Less is "
            "taken by a smaller data.batch_size, strategy=detached (one head's graph at a time), strategy.token_chunks "
            "(one slice of a head's output at a time), strategy.space=features (no copy of all parameters per task)."
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out: one of CUDA, of Python, or of torch's CPU allocator."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)


def _peak(state: Any) -> str:
    for gpu in (torch.cuda, torch.xpu):
        if gpu.is_initialized():
            return f"{gpu.max_memory_allocated() / 2**30:.2f} GiB on the GPU"
    unit = 1 if sys.platform == "darwin" else 1024
    process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
    step = "" if state.peak_memory is None else f", {state.peak_memory / 2**30:.2f} GiB of it in a step"
    return f"{process:.2f} GiB in the process{step}"
