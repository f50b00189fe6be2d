"""The time of a step, every strategy in turn in one process: python experiments/multi_token/step_time.py

Eight heads over three vocabularies, the model of memory.py, one thread; the processor's time of ``strategy.step()``, as
the optimizer's step is the same for all. Prints medians over the rounds of the ratios within a round. The largest
vocabulary takes most of the time: --rounds 3 --vocabularies 256 is a matter of a minute.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time

import torch
from memory import CHUNKS, STRATEGIES, future_tokens
from torch import nn

from mtl.rules import MGDA
from mtl.strategies import Balanced
from mtl.weightings import Equal

HEADS = 8
# What each strategy's time is divided by.
BESIDE = {
    "naive, list of logits": "naive",
    "detached": "naive",
    "balanced": "naive",
    f"detached, {CHUNKS} token chunks": "detached",
    f"balanced, {CHUNKS} token chunks": "balanced",
}


def strategies(names: list[str]) -> dict[str, nn.Module]:
    """Those of the memory study, with a rule that does something."""
    made = {name: make(names) for name, make in STRATEGIES.items()}
    for name, count in (("balanced", 1), (f"balanced, {CHUNKS} token chunks", CHUNKS)):
        made[name] = Balanced(Equal(), MGDA(), names, scale="tasks", token_chunks=count)
    return made


def measure(vocabulary: int, rounds: int, batch: int) -> tuple[dict[str, float], float]:
    """The median ratio of each strategy to the one that it is set beside, and the naive step's median seconds."""
    torch.manual_seed(0)
    model, tasks, inputs, targets = future_tokens(HEADS, vocabulary, batch)
    chosen = list(strategies([task.name for task in tasks]).items())
    seconds: dict[str, list[float]] = {name: [] for name, _ in chosen}
    order = random.Random(0)
    for round_ in range(rounds + 1):
        # Not in a ring: a step after a large one finds the memory that it has left, and would always be the same one.
        for name, strategy in order.sample(chosen, len(chosen)):
            model.zero_grad()
            start = time.process_time()
            strategy.step(model, tasks, inputs, targets)
            if round_:  # the first warms up
                seconds[name].append(time.process_time() - start)
    ratios = {
        name: statistics.median(a / b for a, b in zip(seconds[name], seconds[beside], strict=True))
        for name, beside in BESIDE.items()
    }
    return ratios, statistics.median(seconds["naive"])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[256, 7358, 32768])
    parser.add_argument("--batch", type=int, default=4, help="windows of 256 tokens")
    options = parser.parse_args()
    torch.set_num_threads(1)
    columns = {v: measure(v, options.rounds, options.batch) for v in options.vocabularies}
    print("| | beside | " + " | ".join(f"V = {v:,}" for v in columns) + " |\n|---|---|" + "---|" * len(columns))
    print("| naive, seconds | | " + " | ".join(f"{seconds:.2f}" for _, seconds in columns.values()) + " |")
    for name, beside in BESIDE.items():
        cells = " | ".join(f"{ratios[name]:.2f}" for ratios, _ in columns.values())
        print(f"| {name} | {beside} | {cells} |")


if __name__ == "__main__":
    main()
