"""The study of grouping: its runs are every set of its tasks, and its numbers are those of known transfer."""

import csv
import importlib.util
import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from mtl.config import load
from mtl.config.build import build
from mtl.data.flights import make_fixture
from mtl.data.loader import Batches, sequential
from tests.config.test_config import jobs_of

FOLDER = Path(__file__).parents[2] / "experiments" / "grouping"
TASKS = ["left", "right", "sum", "left_parity", "right_parity"]
SETS = {frozenset(group) for size in range(1, 6) for group in combinations(TASKS, size)}


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location("grouping_study", FOLDER / "study.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tasks_of(job):
    (chosen,) = [o for o in job if o.startswith("tasks=")] or [f"tasks=[{','.join(TASKS)}]"]
    return frozenset(chosen.removeprefix("tasks=").strip("[]").split(","))


def test_the_runs_are_every_set_of_the_tasks():
    jobs = jobs_of("+experiment=grouping") + jobs_of("+experiment=grouping/subsets")
    assert len(jobs) == 31 * 3 and {tasks_of(job) for job in jobs} == SETS
    assert len({tuple(sorted(job)) for job in jobs}) == len(jobs)


def test_the_runs_on_the_flights_are_each_task_and_each_pair():
    jobs = [tasks_of(job) for job in jobs_of("+experiment=grouping/flights_subsets")]
    assert len(jobs) == 15 * 2 and len(set(jobs)) == 15 and {len(own) for own in jobs} == {1, 2}
    assert len(jobs_of("+experiment=grouping/flights")) == 3


@pytest.mark.parametrize("overrides", [["+experiment=grouping"], ["+experiment=grouping/subsets", "tasks=[sum]"]],
                         ids=["all five", "one"])  # fmt: skip
def test_a_run_takes_a_step(overrides):
    parts, state = build(load([*overrides, "data.batch_size=4", "+data.pairs_per_digit=1", "device=cpu"]))
    inputs, targets = next(iter(Batches(parts.data.train, sequential(4, 4), seed=0)))
    result = state.strategy.step(state.model, state.tasks, inputs, targets)
    assert len(result.losses) == (5 if len(overrides) == 1 else 1)
    assert all(torch.isfinite(loss) for loss in result.losses.values())


@pytest.mark.parametrize("tasks", [[], ["tasks=[cancelled,air_time]"]], ids=["all five", "a pair"])
def test_a_run_on_the_flights_takes_a_step(tasks, tmp_path):
    make_fixture(tmp_path / "tiny")
    study = "+experiment=grouping/flights_subsets" if tasks else "+experiment=grouping/flights"
    options = [f"data.root={tmp_path / 'tiny'}", "data.batch_size=32", "backbone.hidden=[8]", "device=cpu"]
    parts, state = build(load([study, *tasks, *options]))
    inputs, targets = next(iter(Batches(parts.data.train, sequential(32, 32), seed=0)))
    result = state.strategy.step(state.model, state.tasks, inputs, targets)
    assert len(result.losses) == (2 if tasks else 5) and all(torch.isfinite(own) for own in result.losses.values())


def made(study, folder, helps, seeds=3):
    """The study's files where training with i takes the share ``helps[i][j]`` of j's loss away, and no other effect."""
    names = TASKS
    with (folder / "results.csv").open("w", newline="") as out:
        lines = csv.writer(out)
        lines.writerow(["tasks", "seed", "task", "loss", "error"])
        for group in sorted(SETS, key=sorted):
            own = [task for task in names if task in group]
            for seed in range(seeds):
                for task in own:
                    share = sum(helps[names.index(other)][names.index(task)] for other in own if other != task)
                    loss = (1 + names.index(task)) * (1 - share / max(1, len(own) - 1))
                    lines.writerow(["+".join(own), seed, task, loss, loss / 10])
    with (folder / "affinity.csv").open("w", newline="") as out:
        lines = csv.writer(out)
        lines.writerow(["seed", "kind", "step_on", "loss_of", "mean"])
        for kind in study.NAMES:
            sign = -1 if kind == "cos" else 1  # a predictor that is wrong throughout
            lines.writerows([0, kind, names[i], names[j], sign * helps[i][j]] for i, j in study.PAIRS)


def test_its_numbers_are_those_of_known_transfer(study, tmp_path):
    helps = np.random.default_rng(0).normal(0, 0.2, size=(5, 5))
    np.fill_diagonal(helps, 0)
    made(study, tmp_path, helps)
    found = study.read(tmp_path)
    np.testing.assert_allclose(study.pair_gains(found, [0, 1, 2]), helps, atol=1e-12)
    table = {line[0]: line[1:] for line in study.prediction_table(found)}
    assert table["lookahead (TAG)"][0] == "+1.00" and table["cosine at the features"][0] == "-1.00"
    rows = {line[0]: line[1:] for line in study.grouping_table(found, 3)}
    # Each task's gain is here the mean over its company: TAG's objective itself.
    assert rows["lookahead (TAG)"] == rows["the best of all"] and rows["the best of all"][-1] == "1 of 41"
    assert rows["cosine at the features"][-1] != "1 of 41"


def test_every_partition_is_counted_once(study):
    found = [frozenset(map(frozenset, groups)) for groups in study.partitions(range(5))]
    assert len(found) == len(set(found)) == 52  # Bell's number
    assert sum(len(groups) <= 2 for groups in found) == 16


@pytest.mark.parametrize("files", [FOLDER, FOLDER / "flights"], ids=["digits", "flights"])
def test_the_readme_has_the_tables_of_the_committed_files(study, files):
    readme, whole = (FOLDER / "README.md").read_text(), study.text(study.read(files))
    for table in whole.strip().split("\n\n"):
        assert table in readme
    assert re.search(r"\d", whole)
