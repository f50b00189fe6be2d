"""The running average of a rule's weights (CR-MOGM), by RuleCall."""

import pytest
import torch
from support.rule_zoo import rows_of

from mtl import rules
from mtl.rules.call import RuleCall

NAMES = ["a", "b", "c"]


def gram_of(step):
    rows = rows_of(3, 5, seed=step)
    return rows @ rows.T


def test_the_average_by_its_recursion_and_by_torchjd():
    call, plain = RuleCall(rules.MGDA(), NAMES, smoothing=0.9), rules.MGDA()
    theirs = pytest.importorskip("torchjd.aggregation").CRMOGMWeighting(plain, alpha=0.9)
    expected = plain(gram_of(0))
    for step in range(6):
        expected = expected if step == 0 else 0.9 * expected + 0.1 * plain(gram_of(step))
        assert call.is_due(NAMES)
        weights = call.solve(gram_of(step), NAMES, {})
        torch.testing.assert_close(weights, expected)
        torch.testing.assert_close(weights, theirs(gram_of(step)))
    assert not torch.allclose(weights, plain(gram_of(5)), atol=1e-2)


def test_between_two_runs_the_average_stays():
    call = RuleCall(rules.MGDA(), NAMES, every=2, smoothing=0.5)
    due = [call.is_due(NAMES) for _ in range(1)]
    first = call.solve(gram_of(0), NAMES, {})
    due.append(call.is_due(NAMES))
    assert torch.equal(call.last(NAMES), first)
    due.append(call.is_due(NAMES))
    torch.testing.assert_close(call.solve(gram_of(2), NAMES, {}), 0.5 * first + 0.5 * rules.MGDA()(gram_of(2)))
    assert due == [True, False, True]


def test_other_tasks_begin_anew():
    call = RuleCall(rules.MGDA(), NAMES, smoothing=0.9)
    call.solve(gram_of(0), NAMES, {})
    two = gram_of(1)[:2, :2]
    torch.testing.assert_close(call.solve(two, ["a", "b"], {}), rules.MGDA()(two))
    bad = torch.full((2, 2), torch.nan)
    assert call.solve(bad, ["a", "b"], {}).isnan().all()
    torch.testing.assert_close(call.solve(two, ["a", "b"], {}), rules.MGDA()(two))  # and not the mean with NaN


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, float("nan")])
def test_out_of_range(smoothing):
    with pytest.raises(ValueError, match=rf"^smoothing={smoothing} must be 0 or more and below 1\.$"):
        RuleCall(rules.MGDA(), NAMES, smoothing=smoothing)


def test_a_rule_on_rows_has_no_weights_to_average():
    with pytest.raises(ValueError, match=r"^smoothing=0.9 averages weights, but GradDrop gives a direction\.$"):
        RuleCall(rules.GradDrop(), NAMES, smoothing=0.9)


def test_a_resumed_run_goes_on_with_the_average(train_tiny):
    options = ("strategy=mgda", "strategy.smoothing=0.9", "conflict.every=1")
    whole = train_tiny(*options, folder="whole")
    stopped = train_tiny(*options, folder="stopped", stop_after=2)
    resumed = train_tiny(*options, f"resume={stopped}", folder="stopped")
    states = [torch.load(f / "checkpoints" / "last.pt", weights_only=True)["model"] for f in (whole, resumed)]
    assert all(torch.equal(one, other) for one, other in zip(*(s.values() for s in states), strict=True))
    other = train_tiny("strategy=mgda", "conflict.every=1", folder="other")
    state = torch.load(other / "checkpoints" / "last.pt", weights_only=True)["model"]
    assert any(not torch.equal(one, two) for one, two in zip(states[0].values(), state.values(), strict=True))
