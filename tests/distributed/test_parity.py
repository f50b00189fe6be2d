"""Several processes on shards of the batches train as one process does on whole batches."""

import pytest
import torch
from support.parity import RULES, WEIGHTINGS, train_all
from support.ranks import run_ranks

STRATEGIES = ("naive", "detached", "MGDA", "PCGrad", "CAGrad", "NashMTL", "GradDrop")
ROWS_THAT_MIX = ("MoCo", "DBMTL", "ExcessMTL")  # elements of a row are combined: space=parameters only

FAST = {
    **{f"{s}-plain": dict(strategy=s) for s in STRATEGIES},
    **{f"{s}-absent": dict(strategy=s, absent=True, audit=s == "detached") for s in ("naive", "detached", "GradDrop")},
    **{f"{s}-parameters": dict(strategy=s, space="parameters", absent=True) for s in ("MGDA", "CAGrad", "GradDrop")},
    **{f"{s}-pyramid": dict(strategy=s, kind="pyramid") for s in ("naive", "detached", "MGDA", "GradDrop")},
    **{f"{s}-batchnorm": dict(strategy=s, kind="batchnorm", sync=True) for s in ("naive", "detached", "MGDA")},
    **{f"{s}-frozen": dict(strategy=s, frozen=True) for s in ("naive", "detached", "MGDA")},
    **{f"detached-{w}": dict(strategy="detached", weighting=w, absent=True) for w in ("uw", "log", "famo", "gradnorm")},
    "naive-log": dict(strategy="naive", weighting="log", absent=True),
    "MGDA-sum": dict(strategy="MGDA", space="features_sum", absent=True),
    "MGDA-audit": dict(strategy="MGDA", audit=True, max_norm=0.1),
    "PCGrad-uw": dict(strategy="PCGrad", weighting="uw", absent=True, head_scale="weights"),
    **{
        f"{s}-equal-heads": dict(strategy=s, kind="equal", count=7, absent=True)
        for s in ("detached", "MGDA", "GradDrop")
    },
    "MGDA-sum-equal-heads": dict(
        strategy="MGDA", kind="equal", count=7, absent=True, space="features_sum", weighting="uw"
    ),
    "MGDA-every": dict(strategy="MGDA", every=2),
    "MGDA-part": dict(strategy="MGDA", space="parameters", part="4", absent=True),
    "MGDA-part-every-audit": dict(strategy="MGDA", space="parameters", part="4", every=2, audit=True),
    "rotograd": dict(strategy="rotograd", kind="rotated", absent=True),
    "MGDA-groups": dict(strategy="MGDA", space="parameters", groups="layer", absent=True, kind="deep", share=["2"]),
    "GradVac-groups": dict(strategy="GradVac", space="parameters", groups=["1"], absent=True, every=2),
    **{f"{s}-sharded": dict(strategy=s, shard="backbone", max_norm=0.1) for s in ("naive", "detached", "MGDA")},
    **{f"{s}-all-sharded": dict(strategy=s, shard="all", absent=True) for s in ("detached", "MGDA")},
    **{
        f"{s}-all-sharded-but-{'-and-'.join(share)}": dict(
            strategy=s, kind="deep", share=share, shard="all", absent=True
        )
        for s in ("detached", "MGDA")
        for share in (["2"], ["0"], ["0", "2"])
    },
    **{
        f"{s}-parameters-common-{name}": dict(
            strategy=s, kind="deep", share=["2"], space="parameters", absent=True, **own
        )
        for s, name, own in (
            ("MGDA", "plain", {}),
            ("TrimmedMean", "rows", {}),
            ("PCGrad", "weights", {"head_scale": "weights"}),
            ("MGDA", "every", {"every": 2}),
            ("MGDA", "log", {"weighting": "log"}),
            ("MGDA", "audit", {"audit": True}),
        )
    },
    **{f"{s}-common-audit": dict(strategy=s, kind="deep", share=["2"], audit=True) for s in ("naive", "detached")},
    "uw-all-sharded": dict(strategy="detached", shard="all", weighting="log", kind="pyramid", absent=True),
}
SLOW = {
    **{
        f"{rule}-{space}-{absent}": dict(strategy=rule, space=space, absent=absent, on_solver_failure="skip")
        for rule in RULES
        for space in ("features", "parameters")
        if space == "parameters" or rule not in ROWS_THAT_MIX
        for absent in (False, True)
    },
    **{
        f"{s}-{w}-{kind}": dict(strategy=s, weighting=w, kind=kind, absent=True)
        for s in ("naive", "detached", "MGDA")
        for w in WEIGHTINGS
        for kind in ("pooled", "pyramid")
    },
    **FAST,
}


UNEQUAL = {
    "float32": dict(strategy="MGDA", dtype=torch.float32, absent=True),
    "local statistics": dict(strategy="detached", kind="batchnorm"),
    **{f"{s}-{count}": dict(strategy=s, count=count) for s in ("naive", "detached", "MGDA") for count in (2, 8)},
    **{f"parameters-{count}": dict(strategy="MGDA", space="parameters", count=count) for count in (2, 8)},
    **{f"log-{count}": dict(strategy="detached", weighting="log", count=count) for count in (2, 8)},
}


class Runs:
    """The results of all cases in one process and on several ranks, computed on first access."""

    def __init__(self, cases, ranks):
        self._cases, self._ranks, self._results = cases, ranks, None

    def __getitem__(self, name):
        if self._results is None:
            cases = list(self._cases.values())
            apart = run_ranks(self._ranks, train_all, cases, seconds=1500)
            self._results = dict(zip(self._cases, zip(train_all(cases), *apart, strict=True), strict=True))
        return self._results[name]


TWO, THREE = Runs(FAST | UNEQUAL, 2), Runs(SLOW, 3)


@pytest.mark.parametrize("name", FAST)
def test_two_ranks_are_one_process(name):
    assert_same(*TWO[name], tolerance=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_three_ranks_are_one_process(name):
    solved = name.split("-")[0] in ("NashMTL", "FairGrad", "SDMGrad")  # solvers that amplify the last digits
    assert_same(*THREE[name], tolerance=1e-9 if solved else 1e-12)


def assert_same(one, *ranks, tolerance):
    for rank in ranks:
        assert (rank["parameters"] - one["parameters"]).abs().max() <= tolerance
        assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-15) for a, b in zip(rank["gram"], one["gram"], strict=True))
        for name in ("losses", "weights"):
            for own, expected in zip(rank[name], one[name], strict=True):
                assert own == pytest.approx(expected, rel=1e-9, abs=1e-12)
        for own, expected in zip(rank["audit"], one["audit"], strict=True):
            assert torch.allclose(own, expected, rtol=1e-9)
        for own, expected in zip(rank["buffers"], one["buffers"], strict=True):
            assert torch.allclose(own, expected)


def test_float32_is_close():
    one, *two = TWO["float32"]
    assert max((rank["parameters"] - one["parameters"]).abs().max() for rank in two) <= 1e-5
    assert all(torch.equal(a, b) for a, b in zip(*(rank["gram"] for rank in two), strict=True))  # to the last bit


def test_what_is_not_synchronised_is_seen():
    """Negative control: with statistics of each rank's own samples the difference exceeds every tolerance."""
    one, two, _ = TWO["local statistics"]
    assert (two["parameters"] - one["parameters"]).abs().max() > 1e-4


@pytest.mark.parametrize(("strategy", "most"), [("naive", 5), ("detached", 4), ("MGDA", 5), ("log", 5)])
def test_the_number_of_sums_does_not_depend_on_the_number_of_tasks(strategy, most):
    """One each for label counts, trunk (one bucket here), heads, Gram matrix, and the losses if weights need them."""
    few, many = (list(map(len, TWO[f"{strategy}-{count}"][1]["collectives"])) for count in (2, 8))
    assert few == many
    assert max(many) <= most


@pytest.mark.parametrize("count", [2, 8])
@pytest.mark.parametrize("space", ["features", "parameters"])
def test_what_travels(space, count):
    """Beside the gradients K² numbers, losses and counts; with space=parameters K gradients of the trunk."""
    result = TWO[f"MGDA-{count}" if space == "features" else f"parameters-{count}"][1]
    trunk, heads = result["sizes"]
    small = count**2 + count + count + 2  # Gram matrix, losses, label counts, samples of either rank
    expected = trunk + heads + small if space == "features" else count * trunk + heads + small - count**2
    assert [sum(sizes) for sizes in result["collectives"]] == [expected] * len(result["collectives"])


def test_one_process_sends_nothing():
    assert TWO["MGDA-8"][0]["collectives"] == [[], [], []]
