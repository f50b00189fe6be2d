"""The affinities that a report shows, from runs with known means."""

import numpy as np
import pytest
from support.affinities import write_affinities

from mtl.report.affinity import BLOCKS, affinities, rank_correlation
from mtl.report.compare import compare
from mtl.report.runs import find_runs
from mtl.report.statistics import interval
from mtl.report.tables import tables

TASKS = ["left", "right", "sum"]
PAIRS = [(a, b) for a in TASKS for b in TASKS]
HEADS = {"heads": {task: {"out_features": 10} for task in TASKS}}


def rows_of(root):
    (comparison,) = compare(find_runs([root]))
    found = {table.title.partition(": ")[2]: table for table in tables(comparison)}
    return comparison.rows, found


def matrix(seed):
    return dict(zip(PAIRS, np.random.default_rng(seed).normal(size=9), strict=True))


def test_of_three_seeds_the_interval_is_over_the_seeds(tmp_path):
    values = {seed: matrix(seed) for seed in range(3)}
    for seed, own in values.items():
        write_affinities(tmp_path / str(seed), own, None, seed, **HEADS)
    (row,), shown = rows_of(tmp_path)
    found = affinities(row)["lookahead"]
    for i, a in enumerate(TASKS):
        for j, b in enumerate(TASKS):
            expected = interval([own[a, b] for own in values.values()])
            assert found.cells[i][j].mean == pytest.approx(expected.mean)
            assert found.cells[i][j].half == pytest.approx(expected.half)
    table = shown["affinity of the tasks, in % of the loss"]
    assert table.header == ["", "by", "step on", *TASKS] and [line[2] for line in table.lines] == TASKS
    cell = interval([100 * own["left", "sum"] for own in values.values()])  # not that of sum on left
    assert table.lines[0][5].startswith(f"{cell.mean:+.0f} ± ")


def test_of_one_seed_it_is_over_parts_of_the_run(tmp_path):
    """Neighbouring steps are alike: their own spread would make the interval too narrow."""
    folder = write_affinities(tmp_path / "a", matrix(0), None, rows=40, **HEADS)
    (row,), _ = rows_of(tmp_path)
    (run,) = find_runs([folder])
    values = run.series["train/affinity/lookahead/left→sum"][1]
    parts = interval([part.mean() for part in values.reshape(BLOCKS, -1)])
    found = affinities(row)["lookahead"].cells[0][2]
    assert (found.mean, found.half, found.count) == (pytest.approx(values.mean()), pytest.approx(parts.half), 1)


def test_estimates_are_compared_with_the_lookahead(tmp_path):
    ahead = matrix(1)
    off = [pair for pair in PAIRS if pair[0] != pair[1]]
    wrong = max(off, key=lambda pair: abs(ahead[pair]))
    estimate = {pair: -0.01 * value if pair == wrong else 0.01 * value for pair, value in ahead.items()}
    write_affinities(tmp_path / "a", ahead, estimate, **HEADS)
    (row,), shown = rows_of(tmp_path)
    rank = rank_correlation(np.array([ahead[p] for p in off]), np.array([estimate[p] for p in off]))
    (line,) = shown["estimates of the affinity against the lookahead"].lines
    assert line == [row.label, "estimate", "6", f"{rank:+.2f}", "83%", "0.01"] and rank < 0.9
    assert {line[1] for line in shown["affinity of the tasks, in % of the loss"].lines} == {"lookahead"}


def test_runs_that_measured_none_have_no_such_tables(tmp_path):
    write_affinities(tmp_path / "a", None, None, **HEADS)
    (row,), shown = rows_of(tmp_path)
    assert affinities(row) == {} and not [title for title in shown if "affinity" in title]


def test_a_pair_that_was_never_measured_is_a_dash(tmp_path):
    write_affinities(tmp_path / "a", None, {pair: 0.1 for pair in PAIRS if pair != ("left", "sum")}, **HEADS)
    (row,), shown = rows_of(tmp_path)
    assert shown["affinity of the tasks, in % of the loss"].lines[0][-1] == "–"
    assert not affinities(row)["estimate"].is_complete
