"""Two ranks train what one process trains, penalties and all, and record the same of it."""

import pytest
from support import spread
from support.ranks import run_ranks
from support.shared_experts import CASES, run_all

from mtl.runs import figures


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root, draw = tmp_path_factory.mktemp("runs"), figures.draw_run
    try:
        return run_all(root / "one"), run_ranks(2, run_all, root / "two")[0]
    finally:
        figures.draw_run = draw


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_train_as_one_process(name, runs):
    (alone, record), (together, other) = (run[name] for run in runs)
    assert max((together[n] - value).abs().max().item() for n, value in alone.items()) <= 1e-5
    own = {metric: value for metric, value in record.items() if metric.startswith("architecture/")}
    assert own == pytest.approx({metric: other[metric] for metric in own}, abs=1e-5) and len(own) >= 8
    assert ("architecture/penalty/left" in own) == ("penalty" in name)


def test_the_comparison_sees_another_run(runs):
    """Negative control."""
    one, _ = runs
    first, second = one["penalty, naive"][0], one["penalty, parameters"][0]
    assert max((second[n] - value).abs().max().item() for n, value in first.items()) > 1e-3


@pytest.fixture(scope="module")
def spread_steps():
    return spread.run_all(), *run_ranks(2, spread.run_all)


@pytest.mark.parametrize("name", spread.CASES)
def test_parts_that_wait_or_draw_leave_on_two_ranks_what_they_leave_on_one(name, spread_steps):
    one, *two = (results[name] for results in spread_steps)
    assert max((rank - one).abs().max() for rank in two) < 1e-12


def test_two_ranks_that_share_the_columns_say_the_same_of_alpha(spread_steps):
    one, *two = (results["alphas"] for results in spread_steps)
    assert two == [one, one] and len({*one.values()}) == 4


def test_the_comparison_sees_other_draws(spread_steps):
    """Negative control."""
    one, *_ = spread_steps
    for name in ("ltb", "members"):
        assert (one[name] - spread.left_by(*spread.CASES[name], seed=2)).abs().max() > 1e-3
