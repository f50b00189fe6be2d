"""The best partition against brute force written differently, and the words and commands of a report."""

from itertools import product

import numpy as np
import pytest
from support.affinities import write_affinities

from mtl.report.command import report
from mtl.report.grouping import EXACT, best_groups, total_affinity
from mtl.report.runs import ReportError


def brute_force(affinity, most):
    """Every assignment of tasks to networks by number, the total by its definition, task by task."""
    best = -np.inf
    for networks in product(range(most), repeat=len(affinity)):
        total = 0.0
        for task, network in enumerate(networks):
            others = [o for o, n in enumerate(networks) if n == network and o != task]
            total += sum(affinity[other][task] for other in others) / max(1, len(others))
        best = max(best, total)
    return best


@pytest.mark.parametrize(
    ("count", "most"), [(2, 1), (2, 2), (3, 2), (3, 4), (5, 1), (5, 2), (5, 3), (5, 5), (7, 2), (7, 3)]
)
def test_the_best_grouping_is_that_of_brute_force(count, most):
    for seed in range(4):
        affinity = np.random.default_rng((seed, count)).normal(0.2 * seed - 0.3, 1, size=(count, count))
        groups = best_groups(affinity, most)
        assert sorted(task for group in groups for task in group) == list(range(count)) and len(groups) <= most
        assert total_affinity(affinity, groups) == pytest.approx(brute_force(affinity, most), abs=1e-12)
        if most > 1 and count > 3:  # negative control: with other affinities they are not the best
            other = affinity[:, np.roll(range(count), 1)]
            assert total_affinity(other, groups) < brute_force(other, most) - 1e-3


def blocks(sizes, inside=1.0, across=-0.5, seed=0):
    """Tasks that help each other inside of blocks and harm each other across, in random order."""
    block = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    noise = np.random.default_rng(seed + 1).normal(0, 0.2, size=(len(block),) * 2)
    return block, np.where(block[:, None] == block, inside, across) + noise


@pytest.mark.parametrize("sizes", [(4, 4, 4), (5, 5, 4), (10, 8, 6)], ids=["12 tasks", "14 tasks", "24 tasks"])
def test_blocks_are_found_exactly_and_by_the_beam(sizes):
    block, affinity = blocks(sizes)
    assert (len(affinity) > EXACT) == (sum(sizes) > 12)
    found = best_groups(affinity, len(sizes))
    assert {frozenset(group) for group in found} == {frozenset(np.flatnonzero(block == b)) for b in range(len(sizes))}


def test_the_beam_comes_near_the_best_of_tasks_without_a_pattern(monkeypatch):
    exact, beam = 0.0, 0.0
    for seed in range(5):
        affinity = np.random.default_rng(seed).normal(size=(9, 9))
        exact += total_affinity(affinity, best_groups(affinity, 3))
        with monkeypatch.context() as patched:
            patched.setattr("mtl.report.grouping.EXACT", 0)
            beam += total_affinity(affinity, best_groups(affinity, 3))
    assert 0.97 * exact <= beam <= exact + 1e-9


def test_tasks_that_all_harm_each_other_are_alone_where_they_may():
    affinity = -np.ones((4, 4))
    assert best_groups(affinity, 9) == [(0,), (1,), (2,), (3,)]
    assert len(best_groups(affinity, 2)) == 2 and best_groups(affinity, 1) == [(0, 1, 2, 3)]


# -------------------------------------------------------------------------------------------------------- reports

HELPS = {("left", "right"): 0.02, ("right", "left"): -0.001, ("left", "left"): 0.1, ("right", "right"): 0.1}
HARMS = {pair: -abs(value) for pair, value in HELPS.items()}


def test_the_report_says_the_groups_and_their_commands(tmp_path):
    write_affinities(tmp_path / "a", HELPS, HELPS)
    text, _ = report([tmp_path / "a"], groups=2)
    assert (
        "Detached, by its lookahead: **left + right**. Total affinity 1.9 %, of all tasks in one network 1.9 %." in text
    )
    assert "\n    mtl-train strategy=detached seed=0 data.offset=1 'tasks=[left,right]'\n" in text
    write_affinities(tmp_path / "b", HARMS, HELPS)
    text, _ = report([tmp_path / "b"], groups=2)
    assert "**left · right**" in text
    assert "\n    mtl-train strategy=detached seed=0 data.offset=1 'tasks=[left]' conflict.affinity_every=0\n" in text
    text, _ = report([tmp_path / "b"])
    assert "mtl-train" not in text


def test_the_report_says_what_it_has_left_out_of_the_commands(tmp_path):
    chosen = {"weights": {"left": 1.0, "right": 2.0}}
    file = write_affinities(tmp_path / "a", HARMS, None, **chosen) / "config.yaml"
    file.write_text(file.read_text().replace('"data.offset=1"]', '"data.offset=1", "weighting.weights.right=2.0"]', 1))
    text, _ = report([tmp_path / "a"], groups=2)
    assert "weighting.weights.right=2.0 '~weighting.weights.left' 'tasks=[right]'" in text
    assert "data.offset=1 'tasks=[left]'" in text
    assert "\n\nWithout what a line's tasks have no part in, or with less of it: `weighting.weights.right=2.0`." in text
    assert "Without what" not in report([write_affinities(tmp_path / "b", HELPS, None)], groups=2)[0]


def test_the_estimate_takes_the_place_of_a_lookahead(tmp_path):
    write_affinities(tmp_path / "a", None, HARMS)
    assert "by its estimate: **left · right**" in report([tmp_path / "a"], groups=2)[0]


def test_and_of_one_that_lacks_a_pair(tmp_path):
    write_affinities(tmp_path / "a", {("left", "right"): 0.1}, HARMS)
    assert "by its estimate: **left · right**" in report([tmp_path / "a"], groups=2)[0]


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        (0, "--groups 0 must be 1 or more: it is the most networks"),
        (
            2,
            "--groups 2: no run here has measured the affinity of all its tasks; train with conflict.affinity_every=10",
        ),
    ],
    ids=["no group", "not measured"],
)
def test_a_mistake_is_one_sentence_before_anything_is_written(tmp_path, groups, words):
    write_affinities(tmp_path / "a", None, {("left", "right"): 0.1} if groups else HELPS)  # one pair lacks
    with pytest.raises(ReportError, match=words):
        report([tmp_path / "a"], groups=groups)
    assert not (tmp_path / "a" / "report.md").exists()
