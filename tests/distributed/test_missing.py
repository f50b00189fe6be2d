"""Labels that are missing on one rank, or in one of a step's batches: two processes train as one does."""

from functools import partial

import pytest
from support import missing
from support.ranks import run_ranks

CASES = {
    **{
        f"no label at all, {strategy}": (missing.without_labels, strategy) for strategy in ("naive", "detached", "MGDA")
    },
    "accumulated, now and then": (partial(missing.accumulated, space="parameters", every=2), "MGDA", "ab"),
    "sharded, late": (missing.evaluated_between, "log"),
    "sharded, revisited": (missing.evaluated_between, "famo"),
    **{
        f"accumulated, {strategy}, {last or 'none'}": (missing.accumulated, strategy, last)
        for strategy in ("naive", "detached", "MGDA")
        for last in ("a", "b", "")
    },
    **{f"accumulated, {last or 'none'}, sharded": (missing.accumulated, "MGDA", last, True) for last in ("a", "b", "")},
    **{f"real numbers, {strategy}": (missing.real_numbers, strategy) for strategy in ("naive", "detached", "MGDA")},
    **{f"waiting heads, {s}": (missing.synchronised_heads, s) for s in ("naive", "detached", "MGDA")},
    "waiting heads, revisited": (missing.synchronised_heads, "detached", "famo"),
    **{f"penalised, {s}": (missing.penalised, s) for s in ("naive", "detached", "MGDA")},
    "penalised, parameters": (partial(missing.penalised, space="parameters"), "MGDA"),
    "weighted classes": (missing.weighted_classes,),
    "accumulated, late, sharded": (missing.accumulated, "detached", "b", True, "log"),
}


def run_all():
    """The result of every case, by name."""
    return {name: function(*arguments) for name, (function, *arguments) in CASES.items()}


@pytest.fixture(scope="module")
def found():
    return run_all(), *run_ranks(2, run_all)


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_leave_what_one_process_leaves(found, name):
    one, *two = (results[name] for results in found)
    assert max((rank - one).abs().max() for rank in two) < (1e-6 if name.startswith("real numbers") else 1e-12)


def test_the_comparison_sees_a_penalty(found):
    """Negative control."""
    one, *_ = found
    assert (one["penalised, detached"] - missing.penalised("detached", entropy=0.0)).abs().max() > 1e-4
