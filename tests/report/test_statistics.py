import numpy as np
import pytest

from mtl.report.statistics import bootstrap, clear_winner, interquartile_mean, interval, mean_ranks, paired_difference


def test_students_interval_of_three_values():
    found = interval([1.0, 2.0, 3.0])
    # t(0.975, 2) = 4.302653 from a printed table, s = 1
    assert found.mean == 2 and found.half == pytest.approx(4.302653 / np.sqrt(3), rel=1e-6)
    assert interval([1.0, 2.0, 3.1]).half != pytest.approx(found.half, rel=1e-6)


def test_it_covers_the_truth_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(size=(2000, 4))
    covered = np.mean([abs(found.mean) <= found.half for found in map(interval, draws)])
    assert 0.935 < covered < 0.965


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 2.0], [1.0, np.nan, 2.0]])
def test_too_few_values_or_one_that_is_none_have_no_interval(values):
    assert interval(values).half is None and interval(values).count == len(values)


def test_pairs_take_out_what_the_seeds_share():
    seeds = {0: 0.1, 1: 0.5, 2: 0.9}
    better = {seed: value + 0.01 + 0.001 * seed for seed, value in seeds.items()}
    found = paired_difference(better, seeds)
    assert found.mean == pytest.approx(0.011) and found.half < 0.003
    assert interval(list(better.values())).half > 0.9  # which hides the difference
    assert paired_difference(better, {0: 0.1, 7: 0.3}).count == 1


def test_the_interquartile_mean_is_the_mean_of_the_middle_half():
    assert interquartile_mean([0, 0, 4, 5, 6, 7, 1000, -1000]) == pytest.approx((0 + 4 + 5 + 6) / 4)


def test_the_bootstrap_needs_eight_values_and_repeats_itself():
    values = np.random.default_rng(1).normal(3, 1, 40)
    assert bootstrap(values[:7]) is None
    middle, low, high = bootstrap(values)
    assert low < middle < high and (middle, low, high) == bootstrap(values)
    # about the normal theory: the interquartile mean's error is 1.1 of the mean's for a normal distribution
    assert (high - low) / 2 == pytest.approx(1.96 * 1.1 / np.sqrt(40), rel=0.35)


def test_ranks_share_ties_and_depend_on_the_set():
    table = np.array([[0.9, 0.2], [0.8, 0.1], [0.9, np.nan]])
    assert mean_ranks(table, [True, False])[:2] == pytest.approx([1.5, 1.5])
    assert np.isnan(mean_ranks(table, [True, False])[2])
    assert mean_ranks(table[:, :1], [True]) == pytest.approx([1.5, 3, 1.5])
    assert mean_ranks(table[:, :1], [False]) == pytest.approx([2.5, 1, 2.5])


def test_noise_has_hardly_ever_a_clear_winner():
    rng = np.random.default_rng(0)
    won = [clear_winner([dict(enumerate(row)) for row in rng.normal(size=(4, 3))], True) for _ in range(1000)]
    assert sum(index is not None for index in won) <= 10
    apart = [dict(enumerate(row)) for row in rng.normal(size=(3, 3)) * 0.01 + np.array([[0], [5], [1]])]
    assert clear_winner(apart, True) == 1 and clear_winner(apart, False) == 0  # negative control


def test_two_seeds_or_seeds_that_changed_nothing_have_no_winner():
    assert clear_winner([{0: 1.0, 1: 1.001}, {0: 0.0, 1: 0.001}], True) is None
    assert clear_winner([{0: 1.0, 1: 1.0, 2: 1.0}, {0: 0.0, 1: 0.0, 2: 0.0}], True) is None
    assert clear_winner([{0: 1.0, 1: 1.01, 2: 0.99}], True) is None  # one row beats nobody
