"""Do feature-space gradients stand in for parameter-space ones? Every audit of every run into a table, and the figure.

    python experiments/feature_vs_parameter/run.py                  # three trunks, five seeds, two trajectories
    python experiments/feature_vs_parameter/run.py --trunks         # draw and print what is in the table

A run is that of ``mtl-train +experiment=feature_vs_parameter``. Every 20 steps the tasks' Gram matrix is formed three
times on one batch: of the rows at the features, of those rows summed over the batch, and of the gradients of the
trunk's parameters. Copies of each rule give their weights for each matrix, and the weights are compared by the update
of the parameters that they come to. So all rules are compared at the same points.
"""

from __future__ import annotations

import argparse
import copy
import csv
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from torch import Tensor

from mtl.config import load
from mtl.config.build import build
from mtl.conflict import agreement_metrics
from mtl.data.loader import Batches, EndlessSampler
from mtl.gradients.cut import Cut, trunk_vjp
from mtl.gradients.rows import ParameterRows, Rows
from mtl.report.statistics import interval
from mtl.training.schedule import step_scheduler

HERE = Path(__file__).parent
TRUNKS = {
    "cnn": ["backbone=tiny_resnet"],
    "vit": ["backbone=vit_tiny", "backbone.name=test_vit", "+backbone.options.patch_size=4"],
    "mlp": ["backbone=mlp"],
}
RULES = ("mgda", "pcgrad", "cagrad", "imtl_g", "nash_mtl", "aligned_mtl", "upgrad")
SPACES = ("features", "features_sum")
MEASURES = ("cos_correlation", "cos_error", "sign_agreement", "norm_correlation")
COLUMNS = ("trunk", "driver", "seed", "step", "space", *MEASURES, *(f"update/{rule}" for rule in RULES))


def audits(trunk: str, driver: str, seed: int, steps: int | None = None) -> Iterator[dict[str, Any]]:
    """Train one run with the strategy ``driver`` and yield a line of the table for each audit and space."""
    torch.set_num_threads(1)
    cfg = load(["+experiment=feature_vs_parameter", *TRUNKS[trunk], f"strategy={driver}", f"seed={seed}", "device=cpu"])
    parts, state = build(cfg)
    rules = {rule: instantiate(load([f"strategy={rule}"]).strategy.rule) for rule in RULES}
    data = parts.data
    sampler = EndlessSampler(len(data.train), data.batch_size, len(data.train) // data.batch_size, seed, 0)
    batches = iter(Batches(data.train, sampler, seed))
    for step in range(1, (steps or cfg.trainer.max_steps) + 1):
        inputs, targets = next(batches)
        if step % cfg.conflict.audit_every == 0:
            where = {"trunk": trunk, "driver": driver, "seed": seed, "step": step}
            yield from ({**where, **line} for line in audit(state, inputs, targets, rules))
        state.optimizer.zero_grad()
        state.strategy.step(state.model, state.tasks, inputs, targets)
        state.optimizer.step()
        step_scheduler(state.scheduler, step)


def audit(state: Any, inputs: Tensor, targets: dict[str, Tensor], rules: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One line a feature space: how well it predicts the parameters' Gram matrix, and each rule's update."""
    here, there = grams(state, inputs, targets)
    names = [task.name for task in state.tasks]
    for space, gram in here.items():
        found = agreement_metrics(gram, there, names, tolerance=0)
        line = {"space": space} | {name: found.get(f"audit/{name}") for name in MEASURES[:-1]}
        lengths = torch.stack([gram.diagonal().log(), there.diagonal().log()])
        line["norm_correlation"] = torch.corrcoef(lengths)[0, 1].item()
        for rule, module in rules.items():
            line[f"update/{rule}"] = update_cosine(there, weights(module, gram), weights(module, there))
        yield line
    ones = torch.ones(len(names), dtype=torch.float64)
    equal = {f"update/{rule}": update_cosine(there, ones, weights(module, there)) for rule, module in rules.items()}
    yield {"space": "equal weighting", **equal}


def grams(state: Any, inputs: Tensor, targets: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """The Gram matrices of one batch at the features, flattened and summed, and at the trunk's parameters.

    The model is left as it was, its running means as well.
    """
    kept = {name: value.clone() for name, value in state.model.state_dict().items()}
    rows, parameters = Rows(), [p for p in state.model.shared_parameters() if p.requires_grad]
    cut, pushed = Cut(state.model.backbone(inputs), rows), ParameterRows(parameters)
    rows.start(len(state.tasks), cut.leaves)
    for task in state.tasks:
        task.loss(state.model.heads[task.name](cut.features), targets[task.name]).backward()
        cut.collect()
    for i in range(len(state.tasks)):
        pushed.append(trunk_vjp(cut.trunk, rows.row(i), parameters))
    state.model.load_state_dict(kept)
    return {"features": rows.gram(), "features_sum": rows.batch_summed_gram()}, pushed.gram()


def weights(rule: Any, gram: Tensor) -> Tensor:
    """What a rule makes of a Gram matrix; a copy is asked, so that one that draws draws the same for each."""
    return copy.deepcopy(rule)(gram).double()


def update_cosine(gram: Tensor, a: Tensor, b: Tensor) -> float:
    """The cosine of the updates sum a_i p_i and sum b_i p_i, from the Gram matrix of the p_i."""
    return (a @ gram @ b / (a @ gram @ a).sqrt() / (b @ gram @ b).sqrt()).item()


def run_all(jobs: Sequence[tuple[str, str, int]], steps: int | None, processes: int, table: Path) -> None:
    """Run every job; its lines go into the table when they are there, and those of other jobs stay."""
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        running = {pool.submit(lines_of, *job, steps): job for job in jobs}
        for done in as_completed(running):
            job, lines = running[done], done.result()
            print(*job, f"{len(lines)} lines", flush=True)
            write(table, [*(line for line in read(table) if key(line) != job), *lines])


def lines_of(trunk: str, driver: str, seed: int, steps: int | None) -> list[dict[str, Any]]:
    """All lines of one run."""
    return list(audits(trunk, driver, seed, steps))


def key(line: dict[str, Any]) -> tuple[str, str, int]:
    """The run that a line is of."""
    return line["trunk"], line["driver"], int(line["seed"])


def read(table: Path) -> list[dict[str, Any]]:
    """The table's lines: numbers where there are any, None where a cell is empty."""
    if not table.exists():
        return []
    with table.open(newline="") as file:
        return [{name: _cell(name, text) for name, text in line.items()} for line in csv.DictReader(file)]


def _cell(name: str, text: str) -> Any:
    if name in ("trunk", "driver", "space"):
        return text
    return None if text == "" else int(text) if name in ("seed", "step") else float(text)


def write(table: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Write the table in the order of trunk, driver, seed and step."""
    temporary = table.with_suffix(".tmp")  # what took minutes is never half a file
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for line in sorted(lines, key=lambda line: (list(TRUNKS).index(line["trunk"]), *key(line)[1:], line["step"])):
            writer.writerow({name: f"{v:.5g}" if isinstance(v, float) else v for name, v in line.items()})
    temporary.replace(table)


def by_seed(lines: list[dict[str, Any]], name: str, **where: Any) -> list[float]:
    """The mean of a column over the audits of each run that fits."""
    values: dict[int, list[float]] = {}
    for line in lines:
        if line.get(name) is not None and all(line[column] == value for column, value in where.items()):
            values.setdefault(line["seed"], []).append(line[name])
    return [float(np.mean(own)) for own in values.values()]


def cell(values: Sequence[float]) -> str:
    """Mean and 95 % interval over the seeds."""
    found = interval(values)
    return f"{found.mean:.2f}" + (f" ± {found.half:.2f}" if found.half is not None else "")


def tables(lines: list[dict[str, Any]], driver: str) -> str:
    """Two tables in Markdown: how well the cosines are predicted, and how alike the updates are."""
    third = max(line["step"] for line in lines) / 3
    parts = (("all", lines), ("first third", [x for x in lines if x["step"] <= third]))
    parts += (("last third", [x for x in lines if x["step"] > 2 * third]),)
    text = [
        "| trunk | space | audits | correlation of the cosines | same sign | error of a cosine | of the log norms |"
    ]
    text.append("|---" * 7 + "|")
    for trunk in TRUNKS:
        for space in SPACES:
            for part, own in parts:
                where = dict(trunk=trunk, driver=driver, space=space)
                cells = (cell(by_seed(own, n, **where)) for n in (MEASURES[0], MEASURES[2], MEASURES[1], MEASURES[3]))
                text.append(f"| {trunk} | `{space}` | {part} | {' | '.join(cells)} |")
    text += ["", "| trunk | weights from | " + " | ".join(RULES) + " |", "|---" * (len(RULES) + 2) + "|"]
    for trunk in TRUNKS:
        for space in (*SPACES, "equal weighting"):
            where = dict(trunk=trunk, driver=driver, space=space)
            cells = (cell(by_seed(lines, f"update/{rule}", **where)) for rule in RULES)
            text.append(f"| {trunk} | {space} | {' | '.join(cells)} |")
    return "\n".join(text)


def draw(lines: list[dict[str, Any]], driver: str, path: Path) -> None:
    """Above, the correlation of the cosines over training, a panel a trunk; below, the agreement of the updates."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7), layout="constrained")
    panels = figure.subplots(2, len(TRUNKS), sharey="row", squeeze=False)
    colours = dict(zip((*SPACES, "equal weighting"), ("C0", "C1", "0.6"), strict=True))
    for (trunk, above), below in zip(zip(TRUNKS, panels[0], strict=True), panels[1], strict=True):
        own = [line for line in lines if line["trunk"] == trunk and line["driver"] == driver]
        steps = sorted({line["step"] for line in own})
        for space in SPACES:
            found = [interval(by_seed(own, "cos_correlation", space=space, step=step)) for step in steps]
            mean, half = (np.array([getattr(f, name) or 0.0 for f in found]) for name in ("mean", "half"))
            above.plot(steps, mean, color=colours[space], label=space)
            above.fill_between(steps, mean - half, mean + half, color=colours[space], alpha=0.2, linewidth=0)
        for i, (space, colour) in enumerate(colours.items()):
            found = [interval(by_seed(own, f"update/{rule}", space=space)) for rule in RULES]
            at = np.arange(len(RULES)) + 0.2 * (i - 1)
            error = [f.half or 0.0 for f in found]
            below.errorbar(at, [f.mean for f in found], error, fmt="o", markersize=6, color=colour, label=space)
        above.set(title=trunk, xlabel="step", ylim=(-0.6, 1.05))
        above.axhline(0, color="0.5", linewidth=0.8)
        below.set_xticks(range(len(RULES)), RULES, rotation=40, ha="right")
        below.set(ylim=(0.6, 1.02))
        for axes in (above, below):
            axes.grid(alpha=0.3)
    panels[0][0].set_ylabel("correlation of the cosines\nwith those in parameter space")
    panels[1][0].set_ylabel("cosine of the update with\nthat of the parameter-space weights")
    panels[0][0].legend(fontsize="small", loc="lower right")
    panels[1][-1].legend(fontsize="small", loc="lower right")
    figure.savefig(path, dpi=100)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trunks", nargs="*", choices=TRUNKS, default=list(TRUNKS), help="none: only draw")
    parser.add_argument("--drivers", nargs="+", default=["detached", "mgda"], help="strategies that train")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(5)))
    parser.add_argument("--steps", type=int, help="steps of a run; default: the experiment's")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=HERE, help="folder of audits.csv and the figure")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    table = options.out / "audits.csv"
    jobs = [(trunk, driver, seed) for seed in options.seeds for trunk in options.trunks for driver in options.drivers]
    if jobs:
        run_all(jobs, options.steps, options.processes, table)
    lines = read(table)
    for driver in dict.fromkeys(line["driver"] for line in lines):
        print(f"\nAlong the trajectory of {driver}\n\n{tables(lines, driver)}")
    draw(lines, "detached", options.out / "agreement.png")


if __name__ == "__main__":
    main()
