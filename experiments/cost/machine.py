"""What the machine's settings cost: the C library's allocator, threads of a sweep's jobs, the memory order of images.

    python experiments/cost/machine.py [--only allocator threads channels_last] [--rounds 2]

Five to seven minutes on two idle cores. What is a process's setting is measured in fresh processes, forked in turn from
this one, which has imported torch and computed nothing; memory orders take turns in one process. Times of the allocator
and of memory orders are the processor's, on one thread, of a whole step with its optimizer; those of jobs are the
clock's.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mtl.config import load
from mtl.config.build import build
from mtl.data.loader import Batches, sequential
from mtl.system.allocator import RetainedHeap
from mtl.training.loaders import to_device

PLACE = "device=cpu", "tracker=jsonl"
STEPS, WARM_UP = 6, 3
SMALL = "data.image_size=64", "data.batch_size=32"
RESNET = "backbone.name=resnet18", *SMALL
LARGER = "backbone.name=resnet18", "data.image_size=128", "data.batch_size=16"
DENSE = "data=scenes", "backbone.name=resnet18", "data.image_size=128", "data.batch_size=8"
TEXT = (
    "data=stdlib", "data.vocabulary=8192", "data.batch_size=8", "backbone=causal_transformer", "backbone.width=256",
    "backbone.depth=4", "heads=next_4", "share=[unembedding]",
)  # fmt: skip
ALLOCATES = {
    "ResNet-18, 64 px, 32 images": RESNET,
    "ResNet-18, 128 px, 16 images": LARGER,
    "ViT-tiny, 64 px, 32 images": ("backbone=vit_tiny", *SMALL),
    "transformer, 8k tokens × 4 heads": TEXT,
    "three FPN heads, ResNet-18, 128 px, 8 images": DENSE,
}
ORDERED = {
    "tiny ResNet, the demo": (),
    "ResNet-18, 64 px, 32 images": RESNET,
    "ResNet-18, 128 px, 16 images": LARGER,
    "ResNet-50, 64 px, 32 images": ("backbone=resnet50", *SMALL),
    "ConvNeXt-atto, 64 px, 32 images": ("backbone=convnext_atto", *SMALL),
    "EfficientNet-B0, 64 px, 32 images": ("backbone=efficientnet_b0", *SMALL),
    "ViT-tiny, 64 px, 32 images": ("backbone=vit_tiny", *SMALL),
    "three FPN heads, ResNet-18, 128 px, 8 images": DENSE,
}
ARRANGED = {  # how two jobs are run: how many at a time, and the threads of each
    "both at once, 1 thread each": (2, 1),
    "one after the other, 2 threads": (1, 2),
    "both at once, 2 threads each": (2, 2),
}


def main() -> None:
    """Print a table for each setting as Markdown."""
    parts: dict[str, Callable[[int], None]] = {
        "allocator": allocator,
        "threads": threads,
        "channels_last": channels_last,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    for name in arguments.only:
        parts[name](arguments.rounds)


# ------------------------------------------------------------------------------------------- allocator


def allocator(rounds: int) -> None:
    """A step with ``trainer.keep_memory`` over one without: time, minor page faults, the process's high-water mark."""
    print("| keep_memory=true, over false | step time | page faults a step | high-water mark, MiB |")
    print("| --- | --- | --- | --- |")
    for case, options in ALLOCATES.items():
        found: dict[bool, list[dict]] = {False: [], True: []}
        for number in range(rounds):
            for keep in (False, True) if number % 2 == 0 else (True, False):
                found[keep].append(in_fresh_process(steps_of, options, keep))
        ratios = [
            a / statistics.median(without["seconds"])
            for without, with_ in zip(found[False], found[True], strict=True)
            for a in with_["seconds"]
        ]
        faults, peaks = (
            " → ".join(f"{statistics.median(run[key] for run in found[keep]):,.0f}" for keep in (False, True))
            for key in ("faults", "peak")
        )
        print(f"| {case} | {spread(ratios)} | {faults} | {peaks} |")
    print(flush=True)


def steps_of(options: tuple[str, ...], keep: bool) -> dict[str, Any]:
    """The seconds of some steps, the page faults of one, and the largest memory of this process in MiB."""
    with RetainedHeap(keep):
        step = training_step(*options)
        seconds, faults = [], []
        for _ in range(WARM_UP + STEPS):
            start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            step()
            seconds.append(time.process_time() - start)
            faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    # Not getrusage's: a forked process has its parent's.
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return {
        "seconds": seconds[WARM_UP:],
        "faults": statistics.median(faults[WARM_UP:]),
        "peak": int(peak.split()[1]) / 1024,
    }


# --------------------------------------------------------------------------------------------- threads


def threads(rounds: int) -> None:
    """The wall time of two jobs on two cores, by how they share them, over that of the first way."""
    taken: dict[str, list[float]] = {name: [] for name in ARRANGED}
    names = list(ARRANGED)
    for number in range(rounds):
        place = number % len(names)
        for name in names[place:] + names[:place]:
            taken[name].append(wall_of_two_jobs(*ARRANGED[name]))
    print("| two jobs (ResNet-18, 64 px) | wall time |\n| --- | --- |")
    for name in names:
        print(f"| {name} | {spread([a / b for a, b in zip(taken[name], taken[names[0]], strict=True)])} |")
    print(flush=True)


def wall_of_two_jobs(at_once: int, count: int) -> float:
    """Seconds that two jobs take on ``count`` threads each; their start does not count."""
    if at_once == 1:
        return sum(in_fresh_process(job, count, None) for _ in range(2))
    start = forked.Barrier(2)
    connections = [begin(job, count, start) for _ in range(2)]
    return max(finish(*connection) for connection in connections)


def job(count: int, start: Any) -> float:
    """Seconds of a job's steps, begun when all are ready."""
    torch.set_num_threads(count)
    with RetainedHeap():
        step = training_step(*RESNET)
        for _ in range(WARM_UP):
            step()
        if start is not None:
            start.wait()
        begun = time.perf_counter()
        for _ in range(2 * STEPS):
            step()
        return time.perf_counter() - begun


# --------------------------------------------------------------------------------------- channels_last


def channels_last(rounds: int) -> None:
    """A step with ``trainer.channels_last`` over one without, in turn in one process a model."""
    print("| channels_last=true, over false | step time |\n| --- | --- |")
    for case, options in ORDERED.items():
        print(f"| {case} | {spread(in_fresh_process(orders, options, 2 + 3 * rounds))} |")
    print(flush=True)


def orders(options: tuple[str, ...], rounds: int) -> list[float]:
    """Ratios of the time of two steps that differ in the memory order alone."""
    with RetainedHeap():
        steps = {last: training_step(*options, f"trainer.channels_last={last}") for last in (False, True)}
        ratios = []
        for number in range(WARM_UP + rounds):
            seconds = {}
            for last in (False, True) if number % 2 == 0 else (True, False):
                start = time.process_time()
                steps[last]()
                seconds[last] = time.process_time() - start
            ratios.append(seconds[True] / seconds[False])
    return ratios[WARM_UP:]


# ------------------------------------------------------------------------------------------------ both


def training_step(*options: str) -> Callable[[], None]:
    """A step on one batch of the data, as the loop makes it."""
    cfg = load([*PLACE, *options])
    parts, state = build(cfg)
    batches = Batches(parts.data.train, sequential(cfg.data.batch_size, cfg.data.batch_size), cfg.seed, split="train")
    inputs, targets = to_device(next(iter(batches)), parts.device, cfg.trainer.channels_last)
    state.model.train()

    def step() -> None:
        state.optimizer.zero_grad()
        state.strategy.step(state.model, parts.tasks, inputs, targets)
        state.optimizer.step()

    return step


forked = multiprocessing.get_context("fork")


def in_fresh_process(function: Callable, *arguments: Any) -> Any:
    """What ``function`` returns in a process of its own, on one thread unless it says otherwise."""
    return finish(*begin(function, *arguments))


def begin(function: Callable, *arguments: Any) -> tuple[Any, Any]:
    """A process that runs ``function``, and where its answer will be."""
    here, there = forked.Pipe(duplex=False)
    process = forked.Process(target=answer, args=(there, function, *arguments))
    process.start()
    there.close()
    return process, here


def answer(there: Any, function: Callable, *arguments: Any) -> None:
    """The body of such a process."""
    torch.set_num_threads(1)
    there.send(function(*arguments))


def finish(process: Any, here: Any) -> Any:
    """Wait for a process's answer; EOFError where it has failed, and said why."""
    value = here.recv()
    process.join()
    return value


def spread(values: list[float]) -> str:
    """The median and the quartiles."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    main()
