"""The deterministic peak-memory instrument, which counts live tensor storages on any device; and out of memory."""

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


class OutOfMemory(MemoryError):
    """Memory ran out in a step; the message has the step, the peak and what takes less."""


@contextmanager
def explained(state: Any) -> Iterator[None]:
    """Turn the device's and the allocator's errors into OutOfMemory, with what a person can do about it.

    ``state`` is the run's TrainState. Nothing is changed in its stead: another batch size would be another result.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).strip().split("\n")[0]
        raise OutOfMemory(
            f"Out of memory at step {state.step + 1} ({reason}); the peak was {_peak(state)}. What takes less: a "
            "smaller data.batch_size, strategy=detached (one head's graph at a time), strategy.token_chunks (one slice "
            "of a head's output at a time), strategy.space=features (no copy of all parameters for each task)."
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory left: CUDA's, Python's, or that of torch's CPU allocator."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)


def _peak(state: Any) -> str:
    if torch.cuda.is_initialized():
        return f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB on the GPU"
    unit = 1 if sys.platform == "darwin" else 1024
    process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
    step = "" if state.peak_memory is None else f", {state.peak_memory / 2**30:.2f} GiB of it in a step"
    return f"{process:.2f} GiB in the process{step}"
