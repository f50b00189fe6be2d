"""The preference of the rules that take one: closed forms, TorchJD's, and what it means for the direction."""

import json

import pytest
import torch
from support.rule_zoo import GRAMS, rows_of

from mtl import rules
from mtl.config import load
from mtl.config.instantiate import make

TAKING = {
    "UPGrad": rules.UPGrad,
    "DualProj": rules.DualProj,
    "MGDA": rules.MGDA,
    "ConFIG": rules.ConFIG,
    "AlignedMTL": lambda **own: rules.AlignedMTL(**own),
    "FairGrad": lambda **own: rules.FairGrad(alpha=2.0, **own),
    "NashMTL": lambda **own: rules.NashMTL(**own),
    "NashMTL normalised": lambda **own: rules.NashMTL(normalize=True, **own),
}
P = torch.tensor([2.0, 0.5, 1.0, 4.0]).double()
ROWS4 = rows_of(4, 6, seed=5)
GRAM4 = ROWS4 @ ROWS4.T
RELATIVE = P / P.mean()


@pytest.mark.parametrize("name", TAKING)
def test_equal_preferences_are_none(name):
    for matrix in ["eight", "ratio 1e6", "rank 4 of 8, common part", "a zero row", "opposite"]:
        gram = GRAMS[matrix]
        alike = TAKING[name](preference=[3.0] * len(gram))(gram)
        torch.testing.assert_close(alike, TAKING[name]()(gram), rtol=1e-9, atol=1e-12, msg=matrix)
    assert not torch.allclose(TAKING[name](preference=P.tolist())(GRAM4), TAKING[name]()(GRAM4), rtol=1e-3)


@pytest.mark.parametrize("name", TAKING)
def test_a_preference_goes_with_its_task(name):
    order = torch.tensor([2, 0, 3, 1])
    plain = TAKING[name](preference=P.tolist())(GRAM4)
    permuted = TAKING[name](preference=P[order].tolist())(GRAM4[order][:, order])
    torch.testing.assert_close(permuted, plain[order], rtol=1e-8, atol=1e-12)
    named = TAKING[name](preference={"b": 0.5, "a": 2, "d": 4}, tasks=["a", "b", "c", "d"])(GRAM4)
    assert torch.equal(named, plain)


@pytest.mark.parametrize("name", TAKING)
def test_the_preferences_of_the_present_tasks(name):
    present = [3, 0]
    gram = GRAM4[present][:, present]
    weights = TAKING[name](preference=P.tolist())(gram, present=present)
    torch.testing.assert_close(weights, TAKING[name](preference=[4.0, 2.0])(gram))
    with pytest.raises(ValueError, match=r"has 2 tasks, but num_tasks=4\."):
        TAKING[name](preference=P.tolist())(gram)


@pytest.mark.parametrize("name", TAKING)
def test_weights_are_finite_on_awkward_matrices(name):
    for matrix, gram in GRAMS.items():
        weights = TAKING[name](preference=[1.0 + i for i in range(len(gram))])(gram)
        assert weights.isfinite().all() and weights.dtype == torch.float64, matrix


def test_upgrad_and_dualproj_hurt_no_task_and_project_the_preferred_sum():
    projected = [project(ROWS4, g) for g in ROWS4]
    direction = rules.UPGrad(preference=P.tolist())(GRAM4) @ ROWS4
    torch.testing.assert_close(direction, sum(p * d for p, d in zip(RELATIVE, projected, strict=True)) / 4)
    direction = rules.DualProj(preference=P.tolist())(GRAM4) @ ROWS4
    torch.testing.assert_close(direction, project(ROWS4, RELATIVE @ ROWS4 / 4))
    assert (ROWS4 @ direction >= -1e-9).all()


def project(rows, target):
    """The projection onto the dual cone, by Dykstra's alternating projections onto its half-spaces."""
    x, corrections = target.clone(), torch.zeros_like(rows)
    for _ in range(20000):
        for i, row in enumerate(rows):
            y = x + corrections[i]
            x = y - row * min(0.0, (y @ row / (row @ row)).item())
            corrections[i] = y - x
    return x


def test_mgda_guarantees_improvements_in_proportion():
    weights = rules.MGDA(preference=P.tolist())(GRAM4)
    gains = GRAM4 @ weights
    assert weights.sum().item() == pytest.approx(1)
    active = weights > 1e-9
    torch.testing.assert_close((gains / P)[active], (gains / P).min().expand(int(active.sum())))
    assert int(active.sum()) >= 2


def test_config_has_cosines_in_proportion():
    direction = rules.ConFIG(preference=P.tolist())(GRAM4) @ ROWS4
    cosines = torch.nn.functional.cosine_similarity(ROWS4, direction, dim=1)
    torch.testing.assert_close(cosines / cosines[0], P / P[0])
    units = torch.nn.functional.normalize(ROWS4, dim=1)
    u = torch.nn.functional.normalize(torch.linalg.pinv(units) @ P, dim=0)
    torch.testing.assert_close(direction, (ROWS4 @ u).sum() * u)


@pytest.mark.parametrize(("alpha", "rule"), [(1.0, rules.NashMTL), (2.0, rules.FairGrad), (0.5, rules.FairGrad)])
def test_fair_weights_solve_their_equation(alpha, rule):
    own = {"alpha": alpha} if rule is rules.FairGrad else {}
    for rows in (ROWS4, ROWS4 * torch.tensor([1.0, 1e3, 1e-3, 1.0]).double()[:, None]):
        weights = rule(**own, preference=P.tolist())(rows @ rows.T)
        torch.testing.assert_close(rows @ rows.T @ weights, (RELATIVE / weights) ** (1 / alpha), rtol=1e-8, atol=0)


def test_aligned_mtl_weighs_the_aligned_gradients():
    values, vectors = torch.linalg.eigh(GRAM4)
    balance = values.min().sqrt() * vectors @ torch.diag(values**-0.5) @ vectors.T
    torch.testing.assert_close(rules.AlignedMTL(preference=P.tolist())(GRAM4), balance @ RELATIVE)


@pytest.mark.parametrize("name", ["UPGrad", "DualProj", "AlignedMTL"])
def test_against_torchjd(name):
    theirs = getattr(pytest.importorskip("torchjd.aggregation"), f"{name}Weighting")
    weighting = theirs(pref_vector=RELATIVE if name == "AlignedMTL" else RELATIVE / 4)
    weights = TAKING[name](preference=P.tolist())(GRAM4)
    torch.testing.assert_close(weights, weighting(GRAM4), rtol=2e-3, atol=2e-3)  # it regularises the matrix
    assert not torch.allclose(TAKING[name]()(GRAM4), weighting(GRAM4), rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    "strategy", ["upgrad", "dualproj", "mgda", "aligned_mtl", "config", "fairgrad", "nash_mtl", "epo"]
)
def test_the_command_line_names_tasks(strategy):
    node = load([f"strategy={strategy}", "+strategy.rule.preference.left=2"]).strategy.rule
    rule = make("strategy.rule", node, num_tasks=2, tasks=["left", "right"], seed=0)
    assert rule.preference.tolist() == [2, 1]


def test_a_preference_is_used_by_a_run(train_tiny):
    records = []
    for own in ([], ["+strategy.rule.preference.left=9"]):
        folder = train_tiny("strategy=upgrad", "conflict.every=1", *own, folder=f"run{len(records)}")
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        records.append(next(line for line in map(json.loads, lines) if "weight/left" in line))
    assert records[1]["weight/left"] > 1.5 * records[0]["weight/left"]
