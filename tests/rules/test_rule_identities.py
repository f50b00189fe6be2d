"""Known identities between rules, and closed forms."""

import pytest
import torch
from support.rule_zoo import GRAMS, ROWS, rows_of

from mtl import rules

PAIRS = ["two", "two in conflict", "two with one far longer"]


def direction(rule, rows):
    found = rule(rows @ rows.T) @ rows
    return found / found.norm()


@pytest.mark.parametrize("matrix", PAIRS)
def test_two_tasks_nash_imtl_config_and_the_normalised_sum_are_parallel(matrix):
    rows = ROWS[matrix]
    expected = (rows / rows.norm(dim=1, keepdim=True)).sum(0)
    for rule in (rules.NashMTL(), rules.IMTLG(), rules.ConFIG(), rules.RotoGradScale(2)):
        torch.testing.assert_close(direction(rule, rows), expected / expected.norm(), rtol=0, atol=1e-9)
    assert (direction(rules.Sum(), rows) - expected / expected.norm()).norm() > 1e-2


def test_three_tasks_nash_and_config_differ():
    assert (direction(rules.NashMTL(), ROWS["three"]) - direction(rules.ConFIG(), ROWS["three"])).norm() > 1e-3


@pytest.mark.parametrize("matrix", PAIRS)
def test_two_tasks_upgrad_is_pcgrad(matrix):
    gram = GRAMS[matrix]
    torch.testing.assert_close(2 * rules.UPGrad()(gram), rules.PCGrad()(gram), rtol=1e-9, atol=0)


def test_three_tasks_upgrad_is_not_pcgrad():
    gram = GRAMS["three"] - 0.8 * (1 - torch.eye(3)) * GRAMS["three"].diagonal().min() / 2
    assert not torch.allclose(3 * rules.UPGrad()(gram), rules.PCGrad()(gram), rtol=1e-3)


@pytest.mark.parametrize("matrix", PAIRS)
def test_two_tasks_mgda_in_closed_form(matrix):
    gram = GRAMS[matrix]
    first = (gram[1, 1] - gram[0, 1]) / (gram[0, 0] + gram[1, 1] - 2 * gram[0, 1])
    first = first.clamp(0, 1)
    torch.testing.assert_close(rules.MGDA()(gram), torch.stack([first, 1 - first]), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("matrix", PAIRS)
def test_two_tasks_pcgrad_in_closed_form(matrix):
    gram = GRAMS[matrix]
    conflict = (-gram[0, 1]).clamp(min=0)
    expected = 1 + conflict / gram.diagonal()
    torch.testing.assert_close(rules.PCGrad()(gram), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("matrix", ["one", "eight", "forty", "ratio 1e6", "opposite", "a zero row"])
def test_fairgrad_one_is_nash(matrix):
    assert torch.equal(rules.FairGrad(alpha=1.0)(GRAMS[matrix]), rules.NashMTL()(GRAMS[matrix]))


def test_fairgrad_two_is_not_nash():
    assert not torch.allclose(rules.FairGrad(alpha=2.0)(GRAMS["eight"]), rules.NashMTL()(GRAMS["eight"]), rtol=0.01)


def test_fairgrad_goes_to_the_sum():
    weights = rules.FairGrad(alpha=1e-3)(GRAMS["common part"])
    torch.testing.assert_close(weights, torch.ones(8).double(), rtol=0, atol=0.01)


def test_fairgrad_goes_to_the_best_worst_case():
    weights = rules.FairGrad(alpha=50.0)(GRAMS["eight"])
    mgda = rules.MGDA()(GRAMS["eight"])
    torch.testing.assert_close(weights / weights.sum(), mgda, rtol=0, atol=0.02)
    assert (weights / weights.sum() - 1 / 8).abs().max() > 0.05


def test_cagrad_is_the_mean_at_zero_and_mgda_far_out():
    gram = GRAMS["eight"]
    torch.testing.assert_close(rules.CAGrad(c=0.0)(gram), rules.Mean()(gram), rtol=0, atol=0)
    weights = rules.CAGrad(c=1e6)(gram)
    torch.testing.assert_close(weights / weights.sum(), rules.MGDA()(gram), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["MGDA", "IMTLG", "UPGrad", "DualProj", "PCGrad", "AlignedMTL", "ConFIG"])
def test_one_task_is_left_as_it_is(name):
    torch.testing.assert_close(getattr(rules, name)()(GRAMS["one"]), torch.ones(1).double())


def test_one_task_where_the_paper_changes_its_length():
    gram = GRAMS["one"]
    torch.testing.assert_close(rules.CAGrad(c=0.25)(gram), torch.tensor([1.25]).double())
    torch.testing.assert_close(rules.NashMTL()(gram), gram[0].rsqrt())


def test_without_conflict_projections_change_nothing():
    gram = GRAMS["common part"].abs()
    for rule, expected in ((rules.PCGrad(), 1.0), (rules.UPGrad(), 1 / 8), (rules.DualProj(), 1 / 8)):
        torch.testing.assert_close(rule(gram), torch.full((8,), expected).double(), rtol=0, atol=0)


def test_aligned_mtl_makes_an_orthogonal_system():
    for mode, scale in (("min", torch.min), ("median", torch.median), ("mean", torch.mean)):
        rows = rows_of(5, 12)
        values = torch.linalg.eigvalsh(rows @ rows.T)
        # The sum of the rows of an orthogonal system with U'V' in common with the rows themselves.
        left, _, right = torch.linalg.svd(rows, full_matrices=False)
        expected = scale(values).sqrt() * (left @ right).sum(0)
        torch.testing.assert_close(rules.AlignedMTL(mode)(rows @ rows.T) @ rows, expected, rtol=1e-9, atol=1e-12)
