"""Train on the standard library's bytes and say what the losses mean: python experiments/multi_token/quality.py

Prints a table of the test losses beside the entropies of the test text, what self-speculative decoding saves, and a
sample; draws conflict.png. Further arguments are mtl-train's, as trainer.max_steps=100.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
from decoding import Decoder
from numpy.typing import NDArray

from mtl.config import load
from mtl.config.build import build_parts
from mtl.runs import checkpoint
from mtl.runs.files import read_metrics
from mtl.train import train

HERE = Path(__file__).parent
PROMPT = b"def "
PROMPTS = 20  # test windows that decoding goes on from


def entropies(tokens: NDArray[np.integer], futures: int) -> list[tuple[float, float]]:
    """The entropy, in nats, of the token k places ahead, alone and given the present one; k is 1 to ``futures``.

    Of the text itself: no table of frequencies, or of pairs so far apart, predicts it with a smaller loss.
    """
    found = []
    for k in range(1, futures + 1):
        now, then = tokens[:-k].astype(np.int64), tokens[k:]
        alone = _entropy(np.bincount(then))
        found.append((alone, _entropy(np.bincount(now * (int(tokens.max()) + 1) + then)) - _entropy(np.bincount(now))))
    return found


def _entropy(counts: NDArray[np.integer]) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def loss_table(test: dict[str, float], bounds: Sequence[tuple[float, float]]) -> str:
    """A line a head: its loss and bits per byte, and the two entropies that it should be below."""
    lines = ["| head | test loss | bits per byte | entropy | entropy given the present byte |", "|---|---|---|---|---|"]
    for k, (alone, given) in enumerate(bounds, 1):
        loss, bits = test[f"loss/next_{k}"], test[f"next_{k}/bits_per_byte"]
        lines.append(f"| next_{k} | {loss:.3f} | {bits:.3f} | {alone:.3f} | {given:.3f} |")
    return "\n".join(lines)


def draw(rows: Sequence[dict[str, float]], heads: int, path: Path) -> None:
    """The measured cosines over time by how far apart two heads look, and every pair's mean over the last half."""
    from matplotlib.figure import Figure

    steps = [row["step"] for row in rows]
    every = [(i, j) for i in range(1, heads + 1) for j in range(i + 1, heads + 1)]
    pairs = {(i, j): np.array([row[f"conflict/cos/next_{i}~next_{j}"] for row in rows]) for i, j in every}
    figure = Figure(figsize=(10, 4), layout="constrained")
    over_time, matrix = figure.subplots(1, 2, width_ratios=[1.5, 1])
    width = max(1, len(steps) // 15)
    for distance in range(1, heads):
        mean = np.mean([values for (i, j), values in pairs.items() if j - i == distance], 0)
        smooth = np.convolve(mean, np.ones(width) / width, "valid")
        over_time.plot(steps[width - 1 :], smooth, color=f"C{distance - 1}", label=f"{distance} apart")
        over_time.plot(steps, mean, color=f"C{distance - 1}", alpha=0.2, linewidth=0.8)
    over_time.axhline(0, color="0.5", linewidth=0.8)
    over_time.set(title="cosine of two heads' gradients at the features", xlabel="step")
    over_time.legend()
    over_time.grid(alpha=0.3)
    values = np.eye(heads)
    for (i, j), series in pairs.items():
        values[i - 1, j - 1] = values[j - 1, i - 1] = series[len(series) // 2 :].mean()
    matrix.imshow(values, cmap="RdBu", vmin=-1, vmax=1)
    names = [f"next_{k}" for k in range(1, heads + 1)]
    matrix.set(title="mean over the last half of the run", xticks=range(heads), yticks=range(heads))
    matrix.set_xticklabels(names), matrix.set_yticklabels(names)
    for (i, j), value in np.ndenumerate(values):
        matrix.text(j, i, f"{value:+.2f}", ha="center", va="center", color="white" if abs(value) > 0.6 else "black")
    figure.savefig(path, dpi=110)


def speculate(decoder: Decoder, prompts: Sequence[list[int]], length: int) -> str:
    """Continue every prompt greedily with head 1 and with all heads; a sentence about what the further ones saved."""
    passes = drafted = accepted = 0
    for prompt in prompts:
        found = decoder.speculative(prompt, length)
        if found.tokens != decoder.greedy(prompt, length):
            raise AssertionError(f"Speculative decoding gave another text than greedy decoding after {prompt}.")
        passes, drafted, accepted = passes + found.passes, drafted + found.drafted, accepted + found.accepted
    return (
        f"{len(prompts)} test windows, each continued by {length} tokens: the same text as by plain greedy decoding, "
        f"{accepted} of {drafted} drafted tokens accepted ({accepted / max(1, drafted):.0%}), "
        f"{len(prompts) * length / passes:.2f} tokens a pass"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, then measure what was trained."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE, help="folder of conflict.png")
    parser.add_argument("--length", type=int, default=100, help="tokens that a prompt is continued by")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args(arguments)
    cfg = load(["+experiment=multi_token", *options.overrides])
    folder = Path("outputs", cfg.name, datetime.now().strftime("%Y-%m-%d/%H-%M-%S-%f"))
    train(cfg, folder)
    parts = build_parts(cfg)
    parts.model.load_state_dict(checkpoint.load(folder / "checkpoints" / "best.pt")["model"])
    data, heads = parts.data, len(cfg.heads)
    print("\n" + loss_table(read_metrics(folder, "test")[-1], entropies(data.test.tokens.numpy(), heads)))
    measured = [row for row in read_metrics(folder, "train") if "conflict/cos_mean" in row]
    if measured:
        draw(measured, heads, options.out / "conflict.png")
    decoder = Decoder(parts.model.cpu(), data.input_info["context"])
    prompts = [data.test[i][0].tolist() for i in range(min(PROMPTS, len(data.test)))]
    print("\n" + speculate(decoder, prompts, options.length))
    sample = data.decode(decoder.sample(data.encode(PROMPT).tolist(), 4 * options.length))
    print("\n" + (PROMPT + sample).decode(errors="replace"))


if __name__ == "__main__":
    main()
