"""Requests to stop a run: SIGTERM and SIGUSR1 set a flag, which the loop checks at the end of each step."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # sent by a cluster when the time is up
EXIT_CODE = 128 + signal.SIGTERM  # 143: a shell's exit code of a process that SIGTERM ended


class Preempted(SystemExit):
    """The run was asked to stop and has saved its state. As a SystemExit, it ends a sweep as well."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


@contextmanager
def signal_handlers(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Handle both signals with ``handler``. A no-op outside of the main thread, where Python allows no handlers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, former in previous.items():
            signal.signal(number, former)


def exit_process(number: int, frame: FrameType | None) -> None:
    """A handler that exits with clean-up: no job runs in this process, but its child processes may run some."""
    raise SystemExit(EXIT_CODE)


class StopSignal:
    """A flag that SIGTERM and SIGUSR1 set while it is active as a context manager; call it to read the flag.

    The second signal ends the process at once, without saving.
    """

    def __init__(self) -> None:
        self._raised = False
        self._handlers = signal_handlers(self._handle)

    def __call__(self) -> bool:
        """Whether the run should stop at the end of this step."""
        return self._raised

    def __enter__(self) -> StopSignal:
        self._handlers.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handlers.__exit__(None, None, None)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._raised and "TORCHELASTIC_RUN_ID" in os.environ:
            return  # a cluster signals every rank, and torchrun forwards its own signal; it kills a rank that is slow
        if self._raised:
            os._exit(EXIT_CODE)
        self._raised = True
        # No logging here: the main thread may hold the logger's lock.
        os.write(2, f"{signal.Signals(number).name}: stopping after this step; once more stops at once\n".encode())


def ignore_in_worker(worker: int) -> None:
    """Ignore both signals in a data loader worker: a signal to the process group must not end it.

    The run needs data until the end of its step, and a dead worker would be an error in the training process.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
