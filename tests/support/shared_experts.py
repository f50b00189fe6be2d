"""Runs of architectures on several ranks, as torchrun would start them."""

import json
from pathlib import Path

from mtl.config import load
from mtl.runs import checkpoint, figures
from mtl.train import train

RUN = [
    "~backbone", "+backbone._target_=support.networks.Deterministic", "data.image_size=8", "data.batch_size=8",
    "+data.pairs_per_digit=1", "trainer.max_steps=3", "trainer.val_every=3", "trainer.limit_val_batches=1",
    "trainer.log_every=1", "conflict.every=1", "tracker=jsonl", "device=cpu", "optimizer=sgd", "optimizer.lr=0.1",
    "scheduler=constant", "trainer.examples=0",
]  # fmt: skip
PENALISED = ["architecture=dselect_k", "architecture.entropy=0.5", "architecture.gamma=3", "architecture.from_stage=1"]
CASES = {
    "cgc": ["architecture=cgc", "strategy=mgda"],
    "ple, parameters": ["architecture=ple", "strategy=mgda", "strategy.space=parameters"],
    "penalty, naive": [*PENALISED, "strategy=naive"],
    "penalty, parameters": [*PENALISED, "strategy=mgda", "strategy.space=parameters"],
    "penalty, micro": [*PENALISED, "trainer.accumulate_grad_batches=2"],
    "penalty, sharded": [*PENALISED, "trainer.shard=all", "optimizer=adamw"],
}


def run_all(root):
    """By case: the parameters at the end, and the first line of the record."""
    figures.draw_run = lambda folder: None
    results = {}
    for name, own in CASES.items():
        alone = Path(root).name == "one"
        overrides = [text for text in own if not (alone and text.startswith("trainer.shard"))]
        folder = Path(root) / name
        train(load([*RUN, *overrides]), folder)
        line = (folder / "metrics.jsonl").read_text().splitlines()[0]
        results[name] = checkpoint.load(folder)["model"], json.loads(line)
    return results
