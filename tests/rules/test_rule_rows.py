"""The rules on rows, against their formulas."""

import pytest
import torch
from support.rule_zoo import rows_of

from mtl import rules


def combine(rule, rows, present=None):
    """The direction over two leaves as one vector, and the weights."""
    leaves = [rows[:, :3], rows[:, 3:]]
    direction, weights = rule.combine(leaves, rows.double() @ rows.double().T, present=present)
    return torch.cat(direction), weights


def test_graddrop_keeps_one_sign():
    rows = rows_of(4, 400)
    direction, weights = combine(rules.GradDrop(), rows)
    positive, negative = rows.clamp(min=0).sum(0), rows.clamp(max=0).sum(0)
    kept = torch.isclose(direction, positive)
    torch.testing.assert_close(direction, torch.where(kept, positive, negative))
    # The share of positive ones that stay is the purity.
    purity = 0.5 * (1 + rows.sum(0) / rows.abs().sum(0))
    assert kept.double().mean().item() == pytest.approx(purity.mean().item(), abs=0.06)
    assert kept[purity > 0.8].double().mean() > 0.7 > 0.3 > kept[purity < 0.2].double().mean()
    assert ((weights > 0) & (weights < 1)).all()


def test_graddrop_leaks():
    rows = rows_of(3, 50)
    torch.testing.assert_close(combine(rules.GradDrop(leak=1.0), rows)[0], rows.sum(0))
    one, none = combine(rules.GradDrop(leak=[0, 1, 0]), rows)[0], combine(rules.GradDrop(), rows)[0]
    assert not torch.allclose(one, none)
    alone = combine(rules.GradDrop(leak=[0, 0.5, 1]), rows[1:], present=[1, 2])[1]
    assert alone[1] == 1
    assert alone[0] < 1


def test_graddrop_leaves_agreement_alone():
    rows = rows_of(3, 50).abs()
    torch.testing.assert_close(combine(rules.GradDrop(), rows)[0], rows.sum(0))


def test_trimmed_mean():
    rows = rows_of(5, 40)
    direction, weights = combine(rules.TrimmedMean(trim=1), rows)
    torch.testing.assert_close(direction, (rows.sum(0) - rows.amax(0) - rows.amin(0)) / 3)
    assert weights.sum() < 1
    torch.testing.assert_close(combine(rules.TrimmedMean(trim=9), rows)[0], rows.median(0).values)
    torch.testing.assert_close(combine(rules.TrimmedMean(trim=0), rows)[0], rows.mean(0))
    torch.testing.assert_close(combine(rules.TrimmedMean(trim=0), rows)[1], torch.full((5,), 0.2).double())


def test_db_mtl():
    rule = rules.DBMTL(3, beta=0.6, sigma=0.5)
    average = None
    for step in range(1, 5):
        rows = rows_of(3, 20, seed=step) * torch.tensor([[1.0], [10.0], [0.1]])
        decay = 0.6 / step**0.5
        average = rows if average is None else decay * average + (1 - decay) * rows
        norms = average.norm(dim=1, keepdim=True)
        direction, weights = combine(rule, rows)
        torch.testing.assert_close(direction, (norms.max() / norms * average).sum(0))
        torch.testing.assert_close(weights, (norms.max() / norms)[:, 0])
    assert not torch.allclose(direction, (norms.max() / norms * rows).sum(0))


def on_simplex(values):
    """Projection by bisection on the shift."""
    low, high = values.min() - 1, values.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (values - middle).clamp(min=0).sum() > 1 else (low, middle)
    return (values - low).clamp(min=0)


def test_moco():
    rule = rules.MoCo(3, beta=0.5, beta_sigma=0.5, gamma=0.02, gamma_sigma=0.5, rho=0.1)
    average, weights = None, torch.full((3,), 1 / 3, dtype=torch.float64)
    for step in range(1, 6):
        rows = rows_of(3, 20, seed=step) * torch.tensor([[1.0], [2.0], [0.5]])
        average = rows if average is None else average - 0.5 / step**0.5 * (average - rows)
        slope = average @ average.T @ weights + 0.1 * weights
        weights = on_simplex(weights - 0.02 / step**0.5 * slope)
        direction, found = combine(rule, rows)
        torch.testing.assert_close(found, weights, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(direction, weights @ average)
    assert (weights - 1 / 3).abs().max() > 0.05


def test_excess_mtl():
    rule = rules.ExcessMTL(3, eta=0.7)
    squares, first, weights = torch.zeros(3, 20).double(), None, torch.ones(3).double()
    for step in range(1, 5):
        rows = rows_of(3, 20, seed=step) / torch.tensor([[1.0], [step], [step**2]])
        squares += rows**2
        excess = (rows**2 / squares.sqrt()).sum(1)
        first = excess if first is None else first
        weights = weights * torch.exp(0.7 * excess / first)
        weights = 3 * weights / weights.sum()
        direction, found = combine(rule, rows)
        torch.testing.assert_close(found, weights)
        torch.testing.assert_close(direction, weights @ rows)
    assert weights[0] > 1.2 > 0.8 > weights[2]


def test_rows_of_another_length_are_an_error():
    rule = rules.MoCo(2)
    rule.combine([torch.ones(2, 4)], torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"The stored rows have \[4\] elements and the new ones \[6\]"):
        rule.combine([torch.ones(2, 6)], torch.ones(2, 2))


def test_rows_that_do_not_match_the_gram_matrix_are_an_error():
    with pytest.raises(ValueError, match="has 3 tasks, but there are 2 rows"):
        rules.TrimmedMean().combine([torch.ones(2, 4)], torch.eye(3))


def test_stored_rows_are_float32_for_bf16():
    rule = rules.DBMTL(2)
    rows = rows_of(2, 8).bfloat16()
    direction, _ = rule.combine([rows], rows.double() @ rows.double().T)
    assert direction[0].dtype == torch.bfloat16
    assert rule.average.rows[0].dtype == torch.float32
