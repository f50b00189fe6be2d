"""Memory on the CPU: whether the C library keeps the memory that a step frees, or returns it to the system."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
from typing import Any

log = logging.getLogger(__name__)

# Options of glibc's mallopt, with the numbers of malloc.h. RETAIN takes all memory from the heap and returns none.
# The options cannot be read, so they are reset to DEFAULTS, the values that glibc reaches after one large tensor.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
RETAIN = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1}
DEFAULTS = {M_MMAP_MAX: 65536, M_MMAP_THRESHOLD: 32 * 2**20, M_TRIM_THRESHOLD: 64 * 2**20}

WARMUP_STEPS = 10  # after which the heap has a place for everything that a step needs
GROWTH = 1.25  # how much the heap may grow after that


class RetainedHeap:
    """Makes the C library keep freed memory for later allocations. A context manager.

    By default glibc returns the memory of large tensors to the system, and every step on the CPU faults the same pages
    in again, zeroed one by one (experiments/cost). If the shapes of batches keep changing, the retained heap fragments
    and grows: call ``check`` after each step, which stops retaining if the heap goes on growing. A later step that
    needs more memory, as one with an audit, stops it as well.

    The setting holds for the whole process, and for data loader workers forked in the context. At the end it is reset
    and free memory is returned. Nothing is done unless ``wanted``, with another C library than glibc, or if the
    environment configures the allocator (``MALLOC_…``, ``GLIBC_TUNABLES``).
    """

    def __init__(self, wanted: bool = True) -> None:
        configured = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
        self.active = wanted and not configured and _is_glibc()
        self._steps = self._start = self._warm_size = 0

    def __enter__(self) -> RetainedHeap:
        if self.active:
            _mallopt(RETAIN)
            self._start = _heap_end()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.active:
            self.active = False
            _mallopt(DEFAULTS)
            trim_heap()

    def check(self) -> None:
        """Stop retaining if the heap has grown by more than a quarter since the tenth step."""
        if not self.active:
            return
        self._steps, size = self._steps + 1, _heap_end() - self._start
        if self._steps == WARMUP_STEPS:
            self._warm_size = size
        if self._steps > WARMUP_STEPS and size > GROWTH * self._warm_size:
            self.__exit__()
            log.info("the heap has grown by a quarter since step %d: it is not retained any more", WARMUP_STEPS)


def trim_heap() -> None:
    """Return all free memory to the system, also between memory in use; a no-op if the C library is not glibc."""
    if _is_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def _is_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"


def _mallopt(options: dict[int, int]) -> None:
    for option, value in options.items():
        ctypes.CDLL(None).mallopt(option, value)


def _heap_end() -> int:
    sbrk = ctypes.CDLL(None).sbrk
    sbrk.restype = ctypes.c_void_p
    return sbrk(0)
