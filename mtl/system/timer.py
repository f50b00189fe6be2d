"""What a step costs: its time, the part of it that waits for data, and its peak memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mtl.system.memory import PeakMemory


class StepTimer:
    """Mean times of the steps since the last reading, and the peak memory of a step."""

    def __init__(self, batch_size: int, device: torch.device, peak: int | None = None, seconds: float = 0.0) -> None:
        self._batch_size, self._device = batch_size, device
        self.peak = peak  # bytes, once it is known
        self._ran = 0
        self._origin = time.perf_counter() - seconds
        self._start_anew()

    def elapsed(self) -> float:
        """Seconds since the beginning of the run, without those between its processes."""
        return time.perf_counter() - self._origin

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is done here, as an evaluation, is no training: it lengthens no step."""
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start

    def _start_anew(self) -> None:
        self._start, self._waited, self._steps = time.perf_counter(), 0.0, 0

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Time spent here is ``time/data``."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @contextmanager
    def step(self) -> Iterator[None]:
        """One step of training; on the CPU the second one's memory is measured, when the optimizer has its state."""
        self._ran += 1
        self._steps += 1
        if self._device.type == "cuda" or self._ran != 2 or self.peak is not None:
            yield
            return
        with PeakMemory() as memory:
            yield
        self.peak = memory.peak

    def read(self) -> dict[str, float]:
        """Seconds a step and of it waiting for data, samples a second, bytes at the peak; then start anew."""
        seconds = (time.perf_counter() - self._start) / max(1, self._steps)
        row = {"time/step": seconds, "time/data": self._waited / max(1, self._steps)}
        row["samples_per_second"] = self._batch_size / seconds
        if self._device.type == "cuda":
            self.peak = torch.cuda.max_memory_allocated(self._device)
        if self.peak is not None:
            row["memory/peak"] = self.peak
        self._start_anew()
        return row
