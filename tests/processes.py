"""Real processes that run mtl-train: torch is loaded once, in a server that each of them is forked from."""

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

TESTS = Path(__file__).parent
_server = multiprocessing.get_context("forkserver")


class Training(_server.Process):
    """``mtl-train`` with these arguments in ``folder``, in a process group of its own; its output is in ``log``."""

    def __init__(self, folder, *arguments, **environment):
        os.environ["PYTHONPATH"] = f"{TESTS.parent}{os.pathsep}{TESTS}"  # for the server, if it is not there yet
        _server.set_forkserver_preload(["mtl.train", "mtl.loop", "mtl.backbones", "mtl.data.digits", "wandb"])
        self.log = Path(folder) / "console.log"
        super().__init__(target=_train, args=(str(folder), arguments, environment, str(self.log)))

    def send(self, number, group=False):
        """A signal, to the process or to its whole group; False if it has ended."""
        try:
            (os.killpg if group else os.kill)(self.pid, number)
        except ProcessLookupError:
            return False
        return True

    def wait(self, seconds=120):
        """The exit code; one that does not end in time is killed, and an error."""
        self.join(seconds)
        if self.exitcode is None:
            self.send(signal.SIGKILL, group=True)
            raise TimeoutError(f"still running after {seconds} s:\n{self.log.read_text()[-3000:]}")
        return self.exitcode


def _train(folder, arguments, environment, log):
    os.setpgid(0, 0)
    multiprocessing.set_start_method("fork", force=True)  # for its own processes, as in one that was not forked
    os.chdir(folder)
    os.environ.update(environment)
    sys.path[:0] = [str(TESTS.parent), str(TESTS)]
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = ["mtl-train", *arguments]
    from mtl.train import main

    main()


def until(condition, seconds=60, every=0.01):
    """Wait for something to become true, and return it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(every)
    raise TimeoutError("it did not happen")
