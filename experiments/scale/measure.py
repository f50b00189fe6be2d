"""What precision, memory order, accumulation and recomputation cost.

    python experiments/scale/measure.py [--device cuda]

Every variant is a step of the same batch, in rotating order in one process; medians of the ratios to the first one.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from mtl.config import load
from mtl.config.build import build
from mtl.system.memory import PeakMemory

SHAPE = "backbone.name=resnet18", "data.image_size=64", "data.batch_size=32", "tracker=jsonl"
EXACT = "trainer.accumulate=exact", "trainer.accumulate_grad_batches=4", "data.batch_size=8"
VARIANTS = {
    "detached": [],
    "naive": ["strategy=naive"],
    "mgda": ["strategy=mgda"],
    "channels_last": ["trainer.channels_last=true"],
    "bf16": ["trainer.precision=bf16"],
    "bf16, channels_last": ["trainer.precision=bf16", "trainer.channels_last=true"],
    "mgda, bf16": ["strategy=mgda", "trainer.precision=bf16"],
    "grad_checkpointing": ["trainer.grad_checkpointing=true"],
    "accumulate 4 × 8, micro": ["data.batch_size=8"],
    "accumulate 4 × 8, exact": [*EXACT],
    "mgda, accumulate 4 × 8, exact": [*EXACT, "strategy=mgda"],
}
ON_GPU = {"fp16": ["trainer.precision=fp16"], "compile": ["trainer.compile=true"]}


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=11)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    variants = VARIANTS | (ON_GPU if arguments.device != "cpu" else {})
    device = arguments.device
    steps = {name: step_of(options, device, 4 if "micro" in name else 1) for name, options in variants.items()}
    peaks = {name: peak(step, arguments.device) for name, step in steps.items()}
    ratios: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for number in range(arguments.rounds):
        place = number % len(names)
        times = {name: seconds(steps[name], arguments.device) for name in names[place:] + names[:place]}
        for name in names:
            ratios[name].append(times[name] / times["detached"])
    print("| | step time | peak memory |\n| --- | --- | --- |")
    for name in names:
        low, middle, high = statistics.quantiles(ratios[name], n=4)
        print(f"| {name} | {middle:.2f} ({low:.2f} to {high:.2f}) | {peaks[name] / peaks['detached']:.2f} |")


def step_of(options: list[str], device: str, count: int):
    """A training step on a batch of 32 samples, in ``count`` batches."""
    parts, state = build(load([*SHAPE, *options, f"device={device}"]))
    state.model.train()
    torch.manual_seed(0)
    order = torch.channels_last if "trainer.channels_last=true" in options else torch.contiguous_format
    inputs = torch.randn(32, 1, 64, 64, device=device).to(memory_format=order)
    targets = {task.name: torch.randint(10, (32,), device=device) for task in parts.tasks}

    def step() -> None:
        state.optimizer.zero_grad()
        state.engine.precision.update_scale(torch.device(device))
        for i in range(count):
            own = {name: target[i::count] for name, target in targets.items()}
            state.strategy.run(state.engine, inputs[i::count], own)
        state.engine.precision.unscale(state.optimizer)
        state.optimizer.step()

    return step


def peak(step, device: str) -> int:
    """Bytes above the parameters, after two steps that are not counted."""
    step(), step()
    if device != "cpu":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - before
    with PeakMemory() as memory:
        step()
    return memory.peak


def seconds(step, device: str) -> float:
    """CPU time of this process, which other processes do not lengthen; on a GPU the time between two events."""
    if device != "cpu":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        step()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000
    start = time.process_time()
    step()
    return time.process_time() - start


if __name__ == "__main__":
    main()
