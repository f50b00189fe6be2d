"""Retained heap: page faults and resident memory, as the operating system counts them in real processes."""

import json
import platform

import pytest

from mtl.system import allocator

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")

MEASURE = """
import json, resource, sys
from pathlib import Path
import torch
from mtl.system import allocator

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def resident():  # bytes
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

def answer(**values):
    print(json.dumps(values))
"""

STEPS = (
    MEASURE
    + """
MiB = 2**20

def step():
    before = faults()
    tensors = [torch.ones(size * MiB // 4) for size in (8, 24, 40, 24)]
    return faults() - before

empty = resident()
step()
by_itself = [step() for _ in range(3)]
with allocator.RetainedHeap():
    for _ in range(5):  # until the heap has a place for each
        step()
    kept = [step() for _ in range(3)]
    inside = resident() - empty
left = resident() - empty
torch.ones(256 * MiB // 4)
afterwards = resident() - empty

def still_active(sizes):
    with allocator.RetainedHeap() as memory:
        for size in sizes:
            torch.ones(size * MiB // 4)
            memory.check()
        return memory.active

same, growing = still_active([24] * 30), still_active(range(8, 98, 3))

# The free memory lies below memory in use: the end of the heap cannot move down.
large, small = zip(*[(torch.ones(MiB // 4), torch.ones(1000)) for _ in range(64)])
full = resident()
del large
freed = full - resident()
allocator.trim_heap()
given_back = full - resident()
answer(by_itself=by_itself, kept=kept)
answer(same=same, growing=growing)
answer(inside=inside, left=left, afterwards=afterwards, freed=freed, given_back=given_back)
"""
)


@glibc
def test_freed_memory_is_kept_inside_and_given_back_afterwards(tmp_path, command):
    (tmp_path / "script.py").write_text(STEPS)
    done = command("script")
    assert done.returncode == 0, done.stderr
    faults, active, resident = (json.loads(line) for line in done.stdout.splitlines())
    assert active == {"same": True, "growing": False}
    assert max(faults["kept"]) * 10 < min(faults["by_itself"])
    assert resident["inside"] > 90 * 2**20
    assert resident["left"] < 20 * 2**20 and resident["afterwards"] < 20 * 2**20
    assert resident["freed"] < 20 * 2**20 and resident["given_back"] > 50 * 2**20


RUNS = (
    MEASURE
    + """
from mtl.config import load
from mtl.runs import checkpoint
from mtl.train import train

torch.set_num_threads(1)
counts, models = {{}}, {{}}
for name, options in {runs!r}.items():
    seen = []
    cfg = load(["trainer.max_steps=6", "trainer.val_every=6", "trainer.limit_val_batches=1", "trainer.examples=0",
                "trainer.log_every=6", "conflict.every=null", "tracker=jsonl", "device=cpu",
                "data.image_size=64", "data.batch_size=32", *options])
    train(cfg, Path(name), lambda: seen.append(faults()))
    # The minimum over steps: some touch pages for the first time, or are followed by an evaluation.
    counts[name] = min(after - before for before, after in zip(seen, seen[1:]))
    models[name] = checkpoint.load(Path(name) / "checkpoints" / "last.pt")["model"]

def same(a, b):
    return all(torch.equal(models[a][key], models[b][key]) for key in models[a])

answer(faults=counts, same=same("without", "with"), control=same("with", "other"))
"""
)


@glibc
def test_a_run_keeps_its_memory_and_computes_the_same_bits(tmp_path, command):
    runs = {"without": ["trainer.keep_memory=false"], "with": [], "other": ["seed=1"]}
    (tmp_path / "script.py").write_text(RUNS.format(runs=runs))
    done = command("script")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["faults"]["with"] * 10 < found["faults"]["without"], found
    assert found["same"] and not found["control"]


class Told(Exception):
    """The C library was loaded."""


@glibc
@pytest.mark.parametrize(
    ("wanted", "library", "variable", "told"),
    [
        (True, "glibc", "NOTHING", True),
        (False, "glibc", "NOTHING", False),
        (True, "", "NOTHING", False),
        (True, "glibc", "MALLOC_TRIM_THRESHOLD_", False),
        (True, "glibc", "GLIBC_TUNABLES", False),
    ],
)
def test_where_the_allocator_is_left_alone(monkeypatch, wanted, library, variable, told):
    def refuse(name):
        raise Told

    monkeypatch.setattr(platform, "libc_ver", lambda: (library, "2.36"))
    monkeypatch.setattr(allocator.ctypes, "CDLL", refuse)
    for name in ("MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "1")
    if told:
        with pytest.raises(Told), allocator.RetainedHeap(wanted):
            pass
    else:
        with allocator.RetainedHeap(wanted):
            pass
