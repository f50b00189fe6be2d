"""Real processes that run our commands, forked from a server that has loaded torch once."""

import importlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

TESTS = Path(__file__).parents[1]


def server():
    """A forkserver context: its processes start with torch and our modules loaded, and with no other state."""
    os.environ["PYTHONPATH"] = f"{TESTS.parent}{os.pathsep}{TESTS}"  # for the server, if it has not started yet
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["support.preloaded"])
    return context


class Command(multiprocessing.get_context("forkserver").Process):
    """Runs the command of a module with arguments in ``folder``, in its own process group."""

    def __init__(self, folder, module, *arguments, out="console.log", err="console.log", **environment):
        server()
        self.out, self.err = Path(folder) / out, Path(folder) / err
        environment = os.environ | environment
        super().__init__(
            target=_command, args=(str(folder), module, arguments, environment, str(self.out), str(self.err))
        )

    def send(self, number, group=False):
        """Send a signal to the process or to its group; False if the process has ended."""
        try:
            (os.killpg if group else os.kill)(self.pid, number)
        except ProcessLookupError:
            return False
        return True

    def wait(self, seconds=120):
        """Wait for the exit code; a process that does not end in time is killed, and TimeoutError raised."""
        self.join(seconds)
        if self.exitcode is None:
            self.send(signal.SIGKILL, group=True)
            raise TimeoutError(f"still running after {seconds} s:\n{self.err.read_text()[-3000:]}")
        return self.exitcode


class Training(Command):
    """Runs ``mtl-train`` with arguments in ``folder``; its output is in ``log``."""

    def __init__(self, folder, *arguments, **environment):
        super().__init__(folder, "mtl.train", *arguments, **environment)
        self.log = self.out


def _command(folder, module, arguments, environment, out, err):
    os.setpgid(0, 0)
    multiprocessing.set_start_method("fork", force=True)  # Linux's default, for its own child processes
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = [folder, str(TESTS.parent), str(TESTS)]
    for descriptor, file in ((1, out), (2, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    sys.argv = [module, *arguments]
    # An empty run.png: drawing it is half of a short run's time, and tests/test_train.py looks at one.
    importlib.import_module("mtl.report").draw_run = lambda folder: (folder / "run.png").touch()
    importlib.import_module(module).main()


def until(condition, seconds=60, every=0.01):
    """Wait until ``condition()`` is true, and return its value."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(every)
    raise TimeoutError("it did not happen")


def wandb_service(process):
    """The process id of the child ``wandb-core`` of a process; None if there is none."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, others = stat.read_text().partition("(")[2].rpartition(") ")
        except OSError:  # the process has ended meanwhile
            continue
        state, parent, *_ = others.split()
        if name == "wandb-core" and int(parent) == process and state != "Z":  # Z: a zombie, killed before
            return int(stat.parent.name)
    return None


@contextmanager
def small_disk(folder, megabytes):
    """A disk of this size in memory, mounted at ``folder``; OSError if this process may not mount one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        folder.rmdir()
        raise OSError("a small disk cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk):
    """Fill a disk; returns the file to delete."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return filler
