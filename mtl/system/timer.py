"""The cost of a training step: its time, the part of it that waits for data, and its peak memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mtl.system.memory import PeakMemory


class StepTimer:
    """Mean times of the steps since the last reading, and the peak memory of a step.

    ``batch_size``: the samples of a step. A resumed run starts from the ``peak``, in bytes, and the ``seconds`` of its
    earlier processes.
    """

    def __init__(self, batch_size: int, device: torch.device, peak: int | None = None, seconds: float = 0.0) -> None:
        self._batch_size, self._device = batch_size, device
        self.peak = peak
        self._steps_in_all = 0
        self._origin = time.perf_counter() - seconds
        self._reset()

    def elapsed(self) -> float:
        """Seconds since the beginning of the run; the time between its processes does not count."""
        return time.perf_counter() - self._origin

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Count the time inside as loading, ``time/data``; it is a part of the step."""
        start = time.perf_counter()
        yield
        self._loading += time.perf_counter() - start

    @contextmanager
    def step(self) -> Iterator[None]:
        """Count one step, and measure the memory of the second one: by then the optimizer has its state.

        On a GPU torch counts memory itself, in every step.
        """
        self._steps_in_all += 1
        self._steps += 1
        if self._device.type == "cuda" or self._steps_in_all != 2 or self.peak is not None:
            yield
            return
        with PeakMemory() as memory:
            yield
        self.peak = memory.peak

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time inside out: an evaluation is no part of a step."""
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start

    def read(self) -> dict[str, float]:
        """Seconds a step, seconds of it that load data, samples a second and peak bytes; then start anew."""
        seconds = (time.perf_counter() - self._start) / max(1, self._steps)
        metrics = {"time/step": seconds, "time/data": self._loading / max(1, self._steps)}
        metrics["samples_per_second"] = self._batch_size / seconds
        if self._device.type == "cuda":
            self.peak = torch.cuda.max_memory_allocated(self._device)
        if self.peak is not None:
            metrics["memory/peak"] = self.peak
        self._reset()
        return metrics

    def _reset(self) -> None:
        self._start, self._loading, self._steps = time.perf_counter(), 0.0, 0
