"""What a run does when it is asked to stop: a flag, heeded at the end of a step."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # a cluster's notice that time is up
EXIT_CODE = 128 + signal.SIGTERM  # 143: what a shell says of a process that SIGTERM ended


class Preempted(SystemExit):
    """The run was asked to stop and has saved its state. Being a SystemExit, it ends a sweep as well."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


@contextmanager
def signal_handlers(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Let ``handler`` have both signals. Outside of the main thread, where Python lets nobody have them, do nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, own in before.items():
            signal.signal(number, own)


def exit_process(number: int, frame: FrameType | None) -> None:
    """End the process with its clean-up: no job runs in it, but others may run in processes of its own."""
    raise SystemExit(EXIT_CODE)


class StopSignal:
    """As a context manager it turns SIGTERM and SIGUSR1 into a flag: call it to ask whether one has come.

    The second signal ends the process at once, without saving.
    """

    def __init__(self) -> None:
        self._raised = False
        self._handling = signal_handlers(self._handle)

    def __call__(self) -> bool:
        """Whether the run should stop at the end of this step."""
        return self._raised

    def __enter__(self) -> StopSignal:
        self._handling.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handling.__exit__(None, None, None)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._raised and "TORCHELASTIC_RUN_ID" in os.environ:
            return  # a cluster signals all processes, and torchrun passes its own signal on: it ends who is too slow
        if self._raised:
            os._exit(EXIT_CODE)
        self._raised = True
        # No logging here: the main thread may be inside of the logger's lock.
        os.write(2, f"{signal.Signals(number).name}: stopping after this step; once more stops at once\n".encode())


def ignore_in_worker(worker: int) -> None:
    """Make a loader process deaf to these signals: a whole process group gets them, and the run still needs data.

    A worker that died would be an error in the training process, at any moment.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
