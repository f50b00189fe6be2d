"""Real processes that run our commands: torch is loaded once, in a server that each of them is forked from."""

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
    """The context whose processes begin with torch and our modules loaded, and with nothing that was ever run."""
    os.environ["PYTHONPATH"] = f"{TESTS.parent}{os.pathsep}{TESTS}"  # for the server, if it is not there yet
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "mtl.train",
            "mtl.training.loop",
            "mtl.backbones",
            "mtl.data.digits",
            "wandb",
            "matplotlib.backends.backend_agg",
        ]
    )
    return context


class Command(multiprocessing.get_context("forkserver").Process):
    """The command of a module with these arguments in ``folder``, in a process group of its own."""

    def __init__(self, folder, module, *arguments, out="console.log", err="console.log", **environment):
        server()
        self.out, self.err = Path(folder) / out, Path(folder) / err
        environment = os.environ | environment
        super().__init__(
            target=_command, args=(str(folder), module, arguments, environment, str(self.out), str(self.err))
        )

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
            raise TimeoutError(f"still running after {seconds} s:\n{self.err.read_text()[-3000:]}")
        return self.exitcode


class Training(Command):
    """``mtl-train`` with these arguments in ``folder``; all it says is in ``log``."""

    def __init__(self, folder, *arguments, **environment):
        super().__init__(folder, "mtl.train", *arguments, **environment)
        self.log = self.out


def _command(folder, module, arguments, environment, out, err):
    os.setpgid(0, 0)
    multiprocessing.set_start_method("fork", force=True)  # for its own processes, as in one that was not forked
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = [folder, str(TESTS.parent), str(TESTS)]
    for descriptor, file in ((1, out), (2, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    sys.argv = [module, *arguments]
    importlib.import_module(module).main()


def until(condition, seconds=60, every=0.01):
    """Wait for something to become true, and return it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(every)
    raise TimeoutError("it did not happen")


def wandb_helper(process):
    """The process id of a process's wandb-core, found by its parent and its name; None if it has none."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, others = stat.read_text().partition("(")[2].rpartition(") ")
        except OSError:  # it ended in the meantime
            continue
        state, parent, *_ = others.split()
        if name == "wandb-core" and int(parent) == process and state != "Z":  # Z: it was killed before
            return int(stat.parent.name)
    return None


@contextmanager
def small_disk(folder, megabytes):
    """A disk of that size at ``folder``, made of memory; OSError where this process may not mount one."""
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
    """Write until nothing more can be written; returns the file to delete."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return filler
