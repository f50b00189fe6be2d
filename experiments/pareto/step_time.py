"""CPU time of a training step with members beside one of static weights: python experiments/pareto/step_time.py."""

import statistics
import time

import torch

from mtl.config import load
from mtl.config.build import build

ARMS = {
    "static weights": ["+experiment=pareto/static", "+experiment/pareto/arm=static", "+weighting.weights.left=1"],
    "manifold, 1 preference": ["+experiment=pareto/manifold", "+experiment/pareto/arm=manifold"],
    "manifold, 5 preferences": [
        "+experiment=pareto/manifold", "+experiment/pareto/arm=manifold", "strategy.preferences=5",
    ],
}  # fmt: skip
BLOCKS, STEPS = 7, 5


def main():
    """Print each arm's ratio to the first one: the median over blocks of steps, taken in turn, in one thread."""
    torch.set_num_threads(1)
    built = {name: build(load([*options, "device=cpu"])) for name, options in ARMS.items()}
    ratios = {name: [] for name in ARMS}
    for block in range(BLOCKS + 1):
        seconds = {name: block_seconds(*parts_and_state, block) for name, parts_and_state in built.items()}
        for name, own in seconds.items() if block else ():  # the first one warms up
            ratios[name].append(own / next(iter(seconds.values())))
    for name, own in ratios.items():
        print(f"{name}: {statistics.median(own):.2f} ({min(own):.2f} to {max(own):.2f})")


def block_seconds(parts, state, block):
    """CPU seconds of some steps, without the reading of their data."""
    state.model.train()
    batches = [parts.data.train.batch(list(range(64 * i, 64 * i + 64)), epoch=block) for i in range(STEPS)]
    start = time.process_time()
    for inputs, targets in batches:
        state.optimizer.zero_grad()
        state.strategy.run(state.engine, inputs, targets)
        state.optimizer.step()
    return time.process_time() - start


if __name__ == "__main__":
    main()
