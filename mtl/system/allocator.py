"""Memory on the CPU: what the C library does with what a step has freed."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
from typing import Any

log = logging.getLogger(__name__)

# What glibc is told, by the numbers that malloc.h gives its options: to take all memory from the heap, and to give none
# of it back. It cannot be asked what it was set to; alone, it ends at BY_ITSELF after one large tensor.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
KEEPS = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1}
BY_ITSELF = {M_MMAP_MAX: 65536, M_MMAP_THRESHOLD: 32 * 2**20, M_TRIM_THRESHOLD: 64 * 2**20}

SETTLED = 10  # steps after which the heap has a place for everything that a step needs
GROWTH = 1.25  # what it may grow by from then on


class RetainedHeap:
    """As a context: has the C library keep the memory that is freed inside, for what is allocated next.

    By itself glibc hands large tensors back to the system, and every step on the CPU gets the same pages anew, zeroed,
    one by one (experiments/cost). Batches of ever new shapes would leave ever more holes in what is kept: call
    ``check`` after each step, which ends it where the heap goes on growing. A later step that is larger by itself, as
    one with an audit, ends it as well.

    The setting is the whole process's, and that of the loader processes forked inside; at the end it is undone and what
    is free is given back. Nothing happens unless ``wanted``, with another C library, and where the environment has set
    the allocator up (MALLOC_…, GLIBC_TUNABLES).
    """

    def __init__(self, wanted: bool = True) -> None:
        chosen = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
        self.active = wanted and not chosen and _is_glibc()
        self._steps = self._start = self._settled = 0

    def __enter__(self) -> RetainedHeap:
        if self.active:
            _set(KEEPS)
            self._start = _end_of_heap()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.active:
            self.active = False
            _set(BY_ITSELF)
            trim_heap()

    def check(self) -> None:
        """End it where the heap has grown by more than a quarter since the tenth step."""
        if not self.active:
            return
        self._steps, size = self._steps + 1, _end_of_heap() - self._start
        if self._steps == SETTLED:
            self._settled = size
        if self._steps > SETTLED and size > GROWTH * self._settled:
            self.__exit__()
            log.info("the heap has grown by a quarter since the first steps: from here on no freed memory is kept")


def trim_heap() -> None:
    """Give the system all memory that is free, also from between what is in use; glibc only, else nothing."""
    if _is_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def _is_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"


def _set(options: dict[int, int]) -> None:
    for option, value in options.items():
        ctypes.CDLL(None).mallopt(option, value)


def _end_of_heap() -> int:
    sbrk = ctypes.CDLL(None).sbrk
    sbrk.restype = ctypes.c_void_p
    return sbrk(0)
