"""The peak memory of a step beside the theory: python experiments/multi_token/memory.py

Counts the bytes of live tensors above the parameters, for 1 to 8 heads over three vocabularies, without computing
anything: seconds, the same numbers on every machine. Prints the tables, draws memory.png.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mtl.backbones import CausalTransformer
from mtl.data.stdlib import Stdlib
from mtl.heads import NextToken
from mtl.losses import TokenCrossEntropy
from mtl.model import MultiTaskModel
from mtl.strategies import Balanced, Detached, Naive
from mtl.system.memory import PeakMemory, without_data
from mtl.tasks import Task
from mtl.weightings import Equal

HERE = Path(__file__).parent
BATCH, CONTEXT, WIDTH, DEPTH = 8, 256, 256, 4
HEADS = (1, 2, 4, 8)
CHUNKS = 4
MIB = 2**20


def future_tokens(heads: int, vocabulary: int, batch: int = BATCH, width: int = WIDTH) -> tuple:
    """A model with the paper's heads, a transformer layer each under one unembedding; its tasks, inputs, targets."""
    names = [f"next_{k}" for k in range(1, heads + 1)]
    layers = {name: NextToken(width, vocabulary, "transformer") for name in names}
    model = MultiTaskModel(CausalTransformer(vocabulary, CONTEXT, width, DEPTH), layers, ["unembedding"])
    text = torch.randint(vocabulary, (batch, CONTEXT + heads))
    targets = {name: text[:, k : CONTEXT + k].contiguous() for k, name in enumerate(names, 1)}
    return model, [Task(name, TokenCrossEntropy()) for name in names], text[:, :CONTEXT], targets


class Listed(nn.Module):
    """The naive sum as it is often written: the logits of all heads in a list, then the losses."""

    def step(self, model: MultiTaskModel, tasks: list[Task], inputs: Any, targets: dict[str, Any]) -> None:
        """One backward of the sum of the losses."""
        outputs = model(inputs)
        sum(task.loss(outputs[task.name], targets[task.name]) for task in tasks).backward()


class Ones(nn.Module):
    """A rule that only looks: what the rows cost is the same for every rule on their Gram matrix."""

    def forward(self, gram: torch.Tensor) -> torch.Tensor:
        """Weights of one."""
        return torch.ones(len(gram))


STRATEGIES: dict[str, Callable[[list[str]], nn.Module]] = {
    "naive, list of logits": lambda names: Listed(),
    "naive": lambda names: Naive(Equal()),
    "detached": lambda names: Detached(Equal()),
    "balanced": lambda names: Balanced(Equal(), Ones(), names),
    f"detached, {CHUNKS} token chunks": lambda names: Detached(Equal(), CHUNKS),
    f"balanced, {CHUNKS} token chunks": lambda names: Balanced(Equal(), Ones(), names, token_chunks=CHUNKS),
}
# What is left of them when logits outweigh everything else, in units of one head's logits; n heads.
THEORY: dict[str, Callable[[int], float]] = {
    "naive, list of logits": lambda n: 2 * n + 2,
    "naive": lambda n: n + 2,
    "detached": lambda n: 3,
    "balanced": lambda n: 3,
    f"detached, {CHUNKS} token chunks": lambda n: 3 / CHUNKS,
    f"balanced, {CHUNKS} token chunks": lambda n: 3 / CHUNKS,
}


def peak(strategy: str, heads: int, vocabulary: int, **size: int) -> float:
    """The peak of one step in MiB above the parameters."""
    with without_data():
        model, tasks, inputs, targets = future_tokens(heads, vocabulary, **size)
        with PeakMemory() as memory:
            STRATEGIES[strategy]([task.name for task in tasks]).step(model, tasks, inputs, targets)
    return memory.peak / MIB


def logits(vocabulary: int) -> float:
    """The logits of one head in MiB, the unit of the theory."""
    return BATCH * CONTEXT * vocabulary * 4 / MIB


def table(peaks: dict[str, list[float]], vocabulary: int) -> str:
    """A line a strategy: its peak for every number of heads, and in brackets what logits alone come to."""
    unit = logits(vocabulary)
    lines = [
        f"V = {vocabulary:,}, one head's logits L = {unit:.0f} MiB",
        "",
        "| strategy | " + " | ".join(f"n = {n}" for n in HEADS) + " |",
        "|---" * (len(HEADS) + 1) + "|",
    ]
    for strategy, row in peaks.items():
        cells = [f"{mib:,.0f} ({THEORY[strategy](n) * unit:,.0f})" for n, mib in zip(HEADS, row, strict=True)]
        lines.append(f"| {strategy} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def goals(peaks: dict[str, list[float]]) -> str:
    """The ratios that the study is about, at the most heads."""
    chunked = peaks[f"detached, {CHUNKS} token chunks"]
    naive, listed, detached = peaks["naive"], peaks["naive, list of logits"], peaks["detached"]
    own, row = own_gradients(), BATCH * CONTEXT * WIDTH * 4 / MIB
    rows = [
        (f"detached, n = {HEADS[-1]} over n = 1", "at most 1.10", f"{detached[-1] / detached[0]:.3f}"),
        ("naive over detached", "at least 2.8", f"{naive[-1] / detached[-1]:.2f}"),
        ("list of logits over detached", "", f"{listed[-1] / detached[-1]:.2f}"),
        (f"{CHUNKS} token chunks over detached", "at most 0.6", f"{chunked[-1] / detached[-1]:.2f}"),
        ("a further head, naive", "", f"{slope(naive):.2f} MiB"),
        ("a further head, detached", f"its own gradients, {own:.2f} MiB, + 10 %", f"{slope(detached):.2f} MiB"),
        (
            "a further head, balanced",
            f"these and a row, {own + row:.2f} MiB, + 10 %",
            f"{slope(peaks['balanced']):.2f} MiB",
        ),
    ]
    lines = [f"| {what} | {goal} | {found} |" for what, goal, found in rows]
    return "\n".join(["| | goal | measured |", "|---|---|---|", *lines])


def slope(peaks: list[float]) -> float:
    """MiB a head, from two heads on: with the second one the gradient of the unembedding is alive beside its logits."""
    return (peaks[-1] - peaks[1]) / (HEADS[-1] - HEADS[1])


def own_gradients() -> float:
    """What a head has for itself, and so its gradients, in MiB: all but the unembedding."""
    with without_data():
        head = NextToken(WIDTH, 2, "transformer")
        return sum(p.numel() for name, p in head.named_parameters() if "unembedding" not in name) * 4 / MIB


def draw(measured: dict[int, dict[str, list[float]]], path: Path) -> None:
    """A panel a vocabulary: the peaks over the number of heads, and the theory as broken lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.4), layout="constrained")
    for axes, (vocabulary, peaks) in zip(figure.subplots(1, len(measured)), measured.items(), strict=True):
        shown = [name for name in peaks if not name.startswith("balanced, ")]
        for i, name in enumerate(shown):
            axes.plot(HEADS, peaks[name], "o-", color=f"C{i}", label=name)
            if name != "balanced":
                unit = logits(vocabulary)
                axes.plot(HEADS, [THEORY[name](n) * unit for n in HEADS], "--", color=f"C{i}", linewidth=1)
        axes.set(title=f"V = {vocabulary:,}", xlabel="heads", xticks=HEADS, ylim=(0, None))
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("peak of a step above the parameters, MiB")
    figure.axes[0].plot([], [], "--", color="0.4", linewidth=1, label="theory: logits alone")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize="small")
    figure.savefig(path, dpi=100)


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE, help="folder of memory.png")
    options = parser.parse_args()
    measured = {}
    for vocabulary in (256, Stdlib(vocabulary=2**16).vocabulary, 32768):
        measured[vocabulary] = {name: [peak(name, n, vocabulary) for n in HEADS] for name in STRATEGIES}
        print(table(measured[vocabulary], vocabulary) + "\n", flush=True)
    print(goals(measured[32768]))
    draw(measured, options.out / "memory.png")


if __name__ == "__main__":
    main()
