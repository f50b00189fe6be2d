"""Does affinity predict which tasks help each other? The study's tables and figure.

python experiments/grouping/study.py outputs/grouping   (reads the runs into results.csv and affinity.csv)
python experiments/grouping/study.py                    (from these files)
python experiments/grouping/study.py outputs/grouping_flights --files experiments/grouping/flights
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from scipy.stats import rankdata

matplotlib.use("agg")
import matplotlib.pyplot as plt

from mtl.descriptions import AFFINITIES
from mtl.report.affinity import rank_correlation
from mtl.report.grouping import best_groups
from mtl.report.runs import Run, find_runs
from mtl.report.statistics import interval

HERE = Path(__file__).parent
PAIRS = [(i, j) for i in range(5) for j in range(5) if i != j]  # of the five tasks: of the step, of the loss
NAMES = {
    "cos": "cosine at the features",
    "parameters/cos": "cosine at the parameters",
    "estimate": "first order at the features",
    "parameters": "first order at the parameters",
    "lookahead": "lookahead (TAG)",
}
MEASURED = "gains of the pairs themselves"
RESAMPLES = 2000


class Study(NamedTuple):
    """``tasks``: all five; ``losses``: by set of them and seed, the test loss and the error of each; ``predicted``: by
    kind, ``[K, K]``.
    """

    tasks: list[str]
    losses: dict[tuple[str, ...], dict[int, dict[str, tuple[float, float]]]]
    predicted: dict[str, np.ndarray]

    @property
    def seeds(self) -> list[int]:
        """Those of which every run is there."""
        return sorted(set.intersection(*(set(own) for own in self.losses.values())))


# ----------------------------------------------------------------------------------------------------- the files


def collect(folder: Path, files: Path) -> None:
    """Write the runs' test losses and mean affinities into the study's two files."""
    runs = [run for run in find_runs([folder]) if run.finished]
    write(files / "results.csv", ["tasks", "seed", "task", "loss", "error"], (
        ["+".join(run.tasks), run.seed, task, test[f"loss/{task}"], error_of(test, task)]
        for run in runs for test in [run.summary["test"]] for task in run.tasks
    ))  # fmt: skip
    measured = [run for run in runs if len(run.tasks) == 5]
    write(files / "affinity.csv", ["seed", "kind", "step_on", "loss_of", "mean"], (
        [run.seed, kind, run.tasks[i], run.tasks[j], value] for run in measured
        for kind, i, j, value in measurements(run)
    ))  # fmt: skip


def error_of(test: Mapping[str, float], task: str) -> float:
    """1 less the area under the ROC curve, of two classes one of which is rare; 1 less the accuracy; of a number in its
    unit.
    """
    known = [1 - test[f"{task}/{name}"] for name in ("auc", "accuracy") if f"{task}/{name}" in test]
    return known[0] if known else test[f"{task}/abs_err"]


def measurements(run: Run) -> Iterator[tuple[str, int, int, float]]:
    """The mean over a run of every predictor of every ordered pair."""
    for i, j in PAIRS:
        a, b = run.tasks[i], run.tasks[j]
        cosine = next(
            f"train/conflict/cos/{x}~{y}" for x, y in ((a, b), (b, a)) if f"train/conflict/cos/{x}~{y}" in run.series
        )
        yield "cos", i, j, float(run.series[cosine][1].mean())
        z = {(x, y): run.series[f"train/{AFFINITIES['parameters']}{x}→{y}"][1] for x in (a, b) for y in (a, b)}
        # Z_ij = lr <g_i, g_j> / L_j: the rate and the losses cancel.
        cosines = np.sign(z[a, b]) * np.sqrt(np.abs(z[a, b] * z[b, a]) / (z[a, a] * z[b, b]))
        yield "parameters/cos", i, j, float(cosines.mean())
        for kind, prefix in AFFINITIES.items():
            yield kind, i, j, float(run.series[f"train/{prefix}{a}→{b}"][1].mean())


def write(file: Path, header: Sequence[str], lines: Iterable[Sequence[object]]) -> None:
    """Write a CSV file, its numbers to six digits."""
    with file.open("w", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([f"{v:.6g}" if isinstance(v, float) else v for v in line] for line in lines)


def read(files: Path = HERE) -> Study:
    """The study from its two files."""
    losses: dict[tuple[str, ...], dict[int, dict[str, tuple[float, float]]]] = {}
    for line in csv.DictReader((files / "results.csv").open(newline="")):
        own = losses.setdefault(tuple(line["tasks"].split("+")), {}).setdefault(int(line["seed"]), {})
        own[line["task"]] = float(line["loss"]), float(line["error"])
    tasks = list(max(losses, key=len))
    values: dict[str, dict[tuple[int, int], list[float]]] = {kind: {} for kind in NAMES}
    for line in csv.DictReader((files / "affinity.csv").open(newline="")):
        pair = tasks.index(line["step_on"]), tasks.index(line["loss_of"])
        values[line["kind"]].setdefault(pair, []).append(float(line["mean"]))
    predicted = {kind: np.zeros((len(tasks),) * 2) for kind in NAMES}
    for kind, found in values.items():
        for pair, own_values in found.items():
            predicted[kind][pair] = np.mean(own_values)
    return Study(tasks, losses, predicted)


# --------------------------------------------------------------------------------------------- what was predicted


def gain(study: Study, group: Sequence[str], task: str, seed: int, of: int = 0) -> float:
    """The share of a task's test loss (``of=1``: its error) alone that training it in ``group`` takes away."""
    ordered = tuple(t for t in study.tasks if t in group)
    return 1 - study.losses[ordered][seed][task][of] / study.losses[(task,)][seed][task][of]


def pair_gains(study: Study, seeds: Sequence[int], of: int = 0) -> np.ndarray:
    """``[K, K]``: what company of i does for j, the mean over the seeds; 0 on the diagonal."""
    gains, tasks = np.zeros((len(study.tasks),) * 2), study.tasks
    for i, j in PAIRS:
        gains[i, j] = np.mean([gain(study, (tasks[i], tasks[j]), tasks[j], seed, of) for seed in seeds])
    return gains


def at_pairs(matrix: np.ndarray) -> np.ndarray:
    """The entries of the ordered pairs of two tasks."""
    return np.array([matrix[pair] for pair in PAIRS])


def bootstrapped(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """The percentile interval of the rank correlation of two matrices, over the tasks' ten pairs, both ways at once."""
    i, j = np.array(list(combinations(range(len(a)), 2))).T
    drawn = np.random.default_rng(0).integers(len(i), size=(RESAMPLES, len(i)))
    ranks = [rankdata(np.concatenate([m[i, j][drawn], m[j, i][drawn]], axis=1), axis=1) for m in (a, b)]
    x, y = (own - own.mean(1, keepdims=True) for own in ranks)
    found = (x * y).sum(1) / np.sqrt((x**2).sum(1) * (y**2).sum(1))
    low, high = np.nanpercentile(found, [2.5, 97.5])
    return float(low), float(high)


def prediction_table(study: Study) -> list[list[str]]:
    """A line a predictor: its rank correlation with the gain in loss, the interval, that with the gain in error, and of
    how many pairs it says which of the two tasks gains more.
    """
    losses, errors = (pair_gains(study, study.seeds, of) for of in (0, 1))
    lines = []
    for kind, name in NAMES.items():
        own = study.predicted[kind]
        low, high = bootstrapped(own, losses)
        found, other = (rank_correlation(at_pairs(own), at_pairs(gains)) for gains in (losses, errors))
        lines.append([name, f"{found:+.2f}", f"{low:+.2f} to {high:+.2f}", f"{other:+.2f}", directions(own, losses)])
    halves = [at_pairs(pair_gains(study, study.seeds[start::2])) for start in (0, 1)]
    errors_halves = [at_pairs(pair_gains(study, study.seeds[start::2], 1)) for start in (0, 1)]
    again = f"{rank_correlation(*halves):+.2f}", "", f"{rank_correlation(*errors_halves):+.2f}", ""
    return [*lines, ["the same gains, of the other seeds", *again]]


def directions(predicted: np.ndarray, gains: np.ndarray) -> str:
    """Of how many pairs the task that is predicted to gain more does; a dash for a symmetric predictor."""
    told = [
        (predicted[i, j] - predicted[j, i], gains[i, j] - gains[j, i]) for i, j in combinations(range(len(gains)), 2)
    ]
    right = sum((a > 0) == (b > 0) for a, b in told)
    return f"{right} of {len(told)}" if any(a for a, _ in told) else "–"


# ----------------------------------------------------------------------------------------------- what was grouped


def partitions(tasks: Sequence[int]) -> Iterator[list[tuple[int, ...]]]:
    """Every partition of the tasks."""
    if not tasks:
        yield []
        return
    first, *others = tasks
    for size in range(len(others) + 1):
        for company in combinations(others, size):
            rest = [task for task in others if task not in company]
            yield from ([(first, *company), *more] for more in partitions(rest))


def result(study: Study, groups: Sequence[Sequence[int]], seed: int) -> float:
    """The mean over the tasks of their gain in loss in their group, in percent."""
    tasks = study.tasks
    gains = [gain(study, [tasks[t] for t in group], tasks[task], seed) for group in groups for task in group]
    return 100 * float(np.mean(gains))


def grouping_table(study: Study, most: int) -> list[list[str]]:
    """A line a way to choose at most ``most`` groups: the groups, their result, against the mean of all groupings."""
    seeds, every = study.seeds, [groups for groups in partitions(range(len(study.tasks))) if len(groups) <= most]
    results = {tuple(sorted(groups)): [result(study, groups, seed) for seed in seeds] for groups in every}
    random = np.mean(list(results.values()), axis=0)
    order = sorted(results, key=lambda groups: -float(np.mean(results[groups])))
    chosen = {name: best_groups(study.predicted[kind], most) for kind, name in NAMES.items()}
    chosen[MEASURED] = best_groups(pair_gains(study, seeds), most)
    chosen |= {"all together": [tuple(range(len(study.tasks)))]}
    chosen |= {"the best of all": list(order[0]), "the worst of all": list(order[-1])}
    lines = []
    for name, groups in chosen.items():
        key = tuple(sorted(groups))
        own, against = (interval(list(values)) for values in (results[key], np.array(results[key]) - random))
        rank = f"{order.index(key) + 1} of {len(order)}"
        cells = [f"{found.mean:+.1f} ± {found.half or float('nan'):.1f}" for found in (own, against)]
        lines.append([name, words(study, groups), cells[0], cells[1], rank])
    mean = interval(list(random))
    return [*lines, ["a random one", "", f"{mean.mean:+.1f} ± {mean.half or float('nan'):.1f}", "", ""]]


def words(study: Study, groups: Sequence[Sequence[int]]) -> str:
    """The groups by the names of their tasks."""
    return " · ".join(" + ".join(study.tasks[task] for task in group) for group in sorted(groups))


# ------------------------------------------------------------------------------------------------------- shown


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    rule = ["---", *["---:" for _ in header[1:]]]
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, rule, *lines])


def text(study: Study) -> str:
    """The tables of the README; those of groupings where every set of the tasks was trained."""
    header = ["predictor", "rank correlation with the gain in loss", "95 % interval", "in error", "who gains more"]
    parts = [markdown(header, prediction_table(study))]
    for most in (2, 3) if len(study.losses) == 31 else ():
        parts.append(markdown(["chosen by", f"at most {most} networks", "gain, %", "against the mean grouping", "rank"],
                              grouping_table(study, most)))  # fmt: skip
    return "\n\n".join(parts) + "\n"


def draw(study: Study, file: Path) -> None:
    """Every predictor against the measured gain, a point an ordered pair."""
    gains = 100 * at_pairs(pair_gains(study, study.seeds))
    figure, panels = plt.subplots(1, len(NAMES), figsize=(3.1 * len(NAMES), 3.1), sharey=True)
    for panel, (kind, name) in zip(panels, NAMES.items(), strict=True):
        own = at_pairs(study.predicted[kind])
        panel.axhline(0, color="#b8bcc4", linewidth=0.8)
        panel.axvline(0, color="#b8bcc4", linewidth=0.8)
        panel.plot(own, gains, "o", color="#24589b", markersize=4)
        panel.set_title(f"{name}\n{rank_correlation(own, gains):+.2f}", fontsize=9)
        panel.ticklabel_format(axis="x", scilimits=(-2, 2))
    panels[0].set_ylabel("gain in test loss, %")
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)


def main() -> None:
    """Read, print the tables, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="of the runs; without it the study's files are read")
    parser.add_argument("--files", type=Path, default=HERE, help="folder of the study's files")
    options = parser.parse_args()
    if options.folder is not None:
        collect(options.folder, options.files)
    study = read(options.files)
    print(text(study))
    draw(study, options.files / "prediction.png")


if __name__ == "__main__":
    main()
