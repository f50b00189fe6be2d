"""What balancing, measuring and auditing cost a training step: python experiments/rules/step_cost.py

ResNet-18, 64 px, batch 32, K linear heads, one thread. Every variant takes its turn in every round of one process; the
table has the medians of the rounds' ratios to the naive step.
"""

from __future__ import annotations

import statistics
import time

import torch
from torch import nn

from mtl.backbones import Timm
from mtl.model import MultiTaskModel, Task
from mtl.rules import MGDA, NashMTL, UPGrad
from mtl.strategies import Balanced, Detached, Naive
from mtl.weightings import Equal

ROUNDS = 15
EVERY = 50  # steps between audits, over which their cost is spread


def variants(tasks: list[str]) -> dict[str, tuple]:
    """Each strategy by its name in the table, and what its step is asked for."""
    made = {
        "naive": (Naive(Equal()), {}),
        "detached": (Detached(Equal()), {}),
        "detached, conflict metrics' Gram matrix": (Detached(Equal()), {"measure": True}),
    }
    for rule in (MGDA, UPGrad, NashMTL):
        made[f"{rule.__name__}, features"] = (Balanced(Equal(), rule(), tasks), {})
    made["MGDA, features, a step between (every=…)"] = (_between(tasks), {})
    made["MGDA, parameters"] = (Balanced(Equal(), MGDA(), tasks, space="parameters"), {})
    made["detached, audit"] = (Detached(Equal()), {"audit": True})
    return made


def _between(tasks: list[str]) -> Balanced:
    strategy = Balanced(Equal(), MGDA(), tasks, every=10**9)
    strategy.steps = 1
    return strategy


def measure(count: int) -> dict[str, float]:
    """Median ratio of each variant's step to the naive one."""
    torch.manual_seed(0)
    names = [f"task{i}" for i in range(count)]
    model = MultiTaskModel(Timm("resnet18", in_channels=3), {name: nn.Linear(512, 10) for name in names})
    tasks = [Task(name, nn.CrossEntropyLoss()) for name in names]
    inputs = torch.randn(32, 3, 64, 64)
    targets = {name: torch.randint(10, (32,)) for name in names}
    chosen = list(variants(names).items())
    ratios: dict[str, list[float]] = {name: [] for name, _ in chosen}
    for round_ in range(ROUNDS + 1):
        seconds = {}
        for name, (strategy, asked) in chosen[round_ % len(chosen) :] + chosen[: round_ % len(chosen)]:
            model.zero_grad()
            start = time.process_time()
            strategy.step(model, tasks, inputs, targets, **asked)
            seconds[name] = time.process_time() - start
        if round_:  # the first warms up
            for name, own in seconds.items():
                ratios[name].append(own / seconds["naive"])
    return {name: statistics.median(values) for name, values in ratios.items()}


def main() -> None:
    """Print the table for two, four and eight tasks."""
    torch.set_num_threads(1)
    columns = {count: measure(count) for count in (2, 4, 8)}
    print("| step | " + " | ".join(f"K={count}" for count in columns) + " |\n| --- |" + " --- |" * len(columns))
    for name in next(iter(columns.values())):
        print(f"| {name} | " + " | ".join(f"{column[name]:.2f}" for column in columns.values()) + " |")
    spread = [f"{100 * (column['detached, audit'] - column['detached']) / EVERY:.1f} %" for column in columns.values()]
    print(f"| the audit spread over {EVERY} steps | " + " | ".join(spread) + " |")


if __name__ == "__main__":
    main()
