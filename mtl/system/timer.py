"""The cost of a training step: its time, the part of it that waits for data, and its peak memory."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch

from mtl.system.environment import STREAMS
from mtl.system.memory import PeakMemory


class StepTimer:
    """Mean times of the steps since the last reading, and the peak memory of a step.

    ``batch_size``: the samples of a step. A resumed run starts from the ``peak``, in bytes, and the ``seconds`` of its
    earlier processes. ``peaks``: by kind of step; on the CPU of the step that is measured only.

    A GPU runs behind the host. There loading is what lies between two events on the GPU, how long it had to wait for
    the batch; and the steps' time ends when it has done them.
    """

    def __init__(
        self,
        batch_size: int,
        device: torch.device,
        peak: int | None = None,
        seconds: float = 0.0,
        peaks: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self._batch_size, self._device = batch_size, device
        self.peak, self.peaks = peak, dict(peaks)
        self._gpu: Any = torch.get_device_module(device) if device.type in STREAMS else None
        self._steps_in_all = 0
        self._origin = time.perf_counter() - seconds
        self._reset()

    def elapsed(self) -> float:
        """Seconds since the beginning of the run; the time between its processes does not count."""
        return time.perf_counter() - self._origin

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Count the time inside as loading, ``time/data``; it is a part of the step."""
        start = self._mark()
        yield
        self._loads.append((start, self._mark()))

    @contextmanager
    def step(self, kind: str = "plain") -> Iterator[None]:
        """Count one step, and measure the memory of the second one: by then the optimizer has its state.

        On a GPU torch counts memory itself, in every step.
        """
        self._steps_in_all += 1
        self._steps += 1
        if self._gpu is not None:
            self._gpu.reset_peak_memory_stats(self._device)
            yield
            self._keep_peak(kind, self._gpu.max_memory_allocated(self._device))
        elif self._steps_in_all == 2 and self.peak is None:
            with PeakMemory() as memory:
                yield
            self._keep_peak(kind, memory.peak)
        else:
            yield

    def _keep_peak(self, kind: str, peak: int) -> None:
        self.peaks[kind] = max(peak, self.peaks.get(kind, 0))
        self.peak = max(peak, self.peak or 0)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time inside out: an evaluation is no part of a step."""
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start

    def read(self) -> dict[str, float]:
        """Seconds a step, seconds of it that load data, samples a second and peak bytes; then start anew."""
        end = self._mark()
        if self._gpu is not None:
            end.synchronize()
        seconds = (time.perf_counter() - self._start) / max(1, self._steps)
        loading = sum(self._between(*marks) for marks in self._loads)
        metrics = {"time/step": seconds, "time/data": loading / max(1, self._steps)}
        metrics["samples_per_second"] = self._batch_size / seconds
        if self.peak is not None:
            metrics["memory/peak"] = self.peak
        self._reset()
        return metrics

    def _reset(self) -> None:
        self._start, self._steps = time.perf_counter(), 0
        self._loads: list[tuple[Any, Any]] = []

    def _mark(self) -> Any:
        """Now: of the host, or an event on the GPU."""
        if self._gpu is None:
            return time.perf_counter()
        event = self._gpu.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, start: Any, end: Any) -> float:
        return end - start if self._gpu is None else start.elapsed_time(end) / 1000
