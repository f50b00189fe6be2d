"""Does a part of the trunk tell what the whole of it says? Gram matrices over layers, and what a step over them costs.

    python experiments/feature_vs_parameter/parts.py          # three trunks, three seeds: parts.csv and the table
    python experiments/feature_vs_parameter/parts.py --cost   # a step of ResNet-18 over the number of tasks

The runs are those of run.py along the trajectory of equal weighting. Every 20 steps the Gram matrix over a part's
parameters is compared with that over all of the trunk's, and so is the one at the features.
"""

from __future__ import annotations

import argparse
import csv
import random
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from run import MEASURES, TRUNKS, by_seed, cell, update_cosine, weights
from torch import Tensor

from mtl.backbones import Timm
from mtl.config import load
from mtl.config.build import build
from mtl.conflict import agreement_metrics
from mtl.data.loader import Batches, EndlessSampler
from mtl.gradients.cut import Cut
from mtl.gradients.rows import Rows
from mtl.gradients.spaces import PartSpace
from mtl.model import MultiTaskModel
from mtl.rules import MGDA
from mtl.strategies import Balanced, Detached
from mtl.tasks import Task
from mtl.training.schedule import step_scheduler
from mtl.weightings import Equal

HERE = Path(__file__).parent
PARTS = {
    "cnn": ["model.conv1", "model.layer1", "model.layer2", "model.layer3", "model.layer4"],
    "vit": ["model.patch_embed", "model.blocks.0", "model.blocks.2", "model.blocks.4", "model.blocks.5"],
    "mlp": ["1", "3", "5"],
}
RULES = ("mgda", "cagrad")
COLUMNS = ("trunk", "seed", "step", "part", *MEASURES, *(f"update/{rule}" for rule in RULES))
EVERY = 20


def lines(trunk: str, seed: int) -> Iterator[dict[str, Any]]:
    """Train one run of equal weighting; a line for each audited step and part."""
    torch.set_num_threads(1)
    cfg = load(["+experiment=feature_vs_parameter", *TRUNKS[trunk], f"seed={seed}", "device=cpu"])
    parts, state = build(cfg)
    rules = {rule: instantiate(load([f"strategy={rule}"]).strategy.rule) for rule in RULES}
    data = parts.data
    sampler = EndlessSampler(len(data.train), data.batch_size, len(data.train) // data.batch_size, seed, 0)
    batches = iter(Batches(data.train, sampler, seed))
    for step in range(1, cfg.trainer.max_steps + 1):
        inputs, targets = next(batches)
        if step % EVERY == 0:
            found = grams(state, inputs, targets, PARTS[trunk])
            whole = found.pop("whole")
            for part, gram in found.items():
                yield {"trunk": trunk, "seed": seed, "step": step, "part": part} | compared(state, gram, whole, rules)
        state.optimizer.zero_grad()
        state.strategy.step(state.model, state.tasks, inputs, targets)
        state.optimizer.step()
        step_scheduler(state.scheduler, step)


def compared(state: Any, gram: Tensor, whole: Tensor, rules: dict[str, Any]) -> dict[str, Any]:
    """How well one Gram matrix predicts the whole trunk's, by the measures of run.py."""
    agreement = agreement_metrics(gram, whole, [task.name for task in state.tasks], tolerance=0)
    lengths = torch.stack([gram.diagonal().log(), whole.diagonal().log()])
    line: dict[str, Any] = {name: agreement.get(f"audit/{name}") for name in MEASURES[:-1]}
    line["norm_correlation"] = torch.corrcoef(lengths)[0, 1].item()
    updates = {f"update/{n}": update_cosine(whole, weights(r, gram), weights(r, whole)) for n, r in rules.items()}
    return line | updates


def grams(state: Any, inputs: Tensor, targets: dict[str, Tensor], parts: list[str]) -> dict[str, Tensor]:
    """The Gram matrices at the features, of each part and of the whole trunk; the model is left as it was."""
    kept = {name: value.clone() for name, value in state.model.state_dict().items()}
    rows = Rows()
    cut = Cut(state.model.backbone(inputs), rows)
    rows.start(len(state.tasks), cut.leaves)
    for task in state.tasks:
        task.loss(state.model.heads[task.name](cut.features), targets[task.name]).backward()
        cut.collect()
    found = {"features": rows.gram()}
    for part in parts:
        found[part] = PartSpace(cut, list(state.model.shared_parameters_of([part]))).gram()
    found["whole"] = PartSpace(cut, list(state.model.shared_parameters())).gram()
    state.model.load_state_dict(kept)
    return found


def table(found: list[dict[str, Any]]) -> str:
    """In Markdown, with 95 % intervals over the seeds."""
    text = [
        "| trunk | rows over | correlation of the cosines | same sign | of the log norms | MGDA's update | CAGrad's |"
    ]
    text.append("|---" * 7 + "|")
    for trunk, parts in PARTS.items():
        for part in ("features", *parts):
            names = (MEASURES[0], MEASURES[2], MEASURES[3], *(f"update/{rule}" for rule in RULES))
            cells = [cell(by_seed(found, name, trunk=trunk, part=part)) for name in names]
            text.append(f"| {trunk} | `{part}` | {' | '.join(cells)} |")
    return "\n".join(text)


def cost(counts: tuple[int, ...] = (2, 4, 8), rounds: int = 9) -> str:
    """Medians of a step's seconds, relative to plain detached accumulation; the steps take turns in random order."""
    torch.set_num_threads(1)
    text = ["| K | detached | `features` | last stage | last two stages | `parameters` |", "|---" * 6 + "|"]
    for count in counts:
        names = [f"task{i}" for i in range(count)]
        model = MultiTaskModel(Timm("resnet18"), {name: torch.nn.Linear(512, 10) for name in names})
        tasks = [Task(name, torch.nn.CrossEntropyLoss()) for name in names]
        batch = torch.randn(16, 3, 96, 96), {name: torch.randint(10, (16,)) for name in names}
        strategies = {
            "detached": Detached(Equal()),
            "features": Balanced(Equal(), MGDA(), names),
            "last": Balanced(Equal(), MGDA(), names, space="parameters", part="model.layer4"),
            "two": Balanced(Equal(), MGDA(), names, space="parameters", part=["model.layer3", "model.layer4"]),
            "parameters": Balanced(Equal(), MGDA(), names, space="parameters"),
        }
        seconds: dict[str, list[float]] = {name: [] for name in strategies}
        for turn in range(rounds + 1):
            for name in random.sample(list(strategies), len(strategies)):
                model.zero_grad()
                start = time.perf_counter()
                strategies[name].step(model, tasks, *batch)
                if turn:  # the first warms up
                    seconds[name].append(time.perf_counter() - start)
        unit = statistics.median(seconds["detached"])
        ratios = [f"{statistics.median(own) / unit:.2f}" for own in seconds.values()]
        text.append(f"| {count} | {' | '.join(ratios)} |")
    return "\n".join(text)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cost", action="store_true", help="measure what a step costs instead")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=HERE, help="folder of parts.csv")
    options = parser.parse_args()
    if options.cost:
        print(cost())
        return
    found = [line for trunk in PARTS for seed in options.seeds for line in lines(trunk, seed)]
    with (options.out / "parts.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({n: f"{v:.5g}" if isinstance(v, float) else v for n, v in line.items()} for line in found)
    print(table(found))


if __name__ == "__main__":
    main()
