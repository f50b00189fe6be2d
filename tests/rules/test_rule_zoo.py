"""Properties of every rule on a collection of awkward matrices."""

import pytest
import torch
from support.rule_zoo import DETERMINISTIC, GRAMS, ON_GRAM, ON_ROWS, ROUNDED, ROWS, rows_of, scaled

from mtl import rules
from mtl.rules.solvers import min_norm_weights


@pytest.mark.parametrize("name", ON_GRAM)
def test_weights_are_finite_float64(name):
    for matrix, gram in (GRAMS | ROUNDED).items():
        weights = ON_GRAM[name](len(gram))(gram)
        assert weights.shape == (len(gram),), matrix
        assert weights.dtype == torch.float64, matrix
        assert weights.isfinite().all(), (matrix, weights)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ON_ROWS)
def test_directions_are_finite_in_the_rows_dtype(name, dtype):
    for matrix, rows in ROWS.items():
        leaves = [rows.to(dtype)[:, :2], rows.to(dtype)[:, 2:]]
        gram = sum(leaf.double() @ leaf.double().T for leaf in leaves)
        direction, weights = ON_ROWS[name](len(rows)).combine(leaves, gram)
        assert [d.shape for d in direction] == [leaf.shape[1:] for leaf in leaves], matrix
        assert all(d.dtype == dtype and d.isfinite().all() for d in direction), matrix
        assert weights.shape == (len(rows),), matrix
        assert weights.isfinite().all(), matrix


# PCD names its primary task by its index, so it does know the order; EPO's linear program may have many solutions.
@pytest.mark.parametrize("name", [name for name in DETERMINISTIC if name not in ("PCD", "EPO")])
def test_a_rule_does_not_know_the_order_of_the_tasks(name):
    # Where several answers are right, which one is taken may depend on the order: those are left out.
    unique = [
        "eight",
        "common part",
        "forty",
        "ratio 1000",
        "ratio 1e6",
        "duplicated",
        "a zero row",
        "bf16 rows",
    ]
    for matrix in [*unique, "two", "two in conflict", "orthogonal", "tiny", "huge"]:
        gram = GRAMS[matrix]
        order = torch.randperm(len(gram), generator=torch.Generator().manual_seed(3))
        make = DETERMINISTIC[name]
        plain, permuted = make(len(gram))(gram), make(len(gram))(gram[order][:, order])
        norms = gram.diagonal().sqrt()
        directions = gram @ plain, gram @ plain.index_copy(0, order, permuted)
        size = norms * (norms @ plain.abs())
        assert ((directions[0] - directions[1]).abs() <= 1e-9 * size).all(), matrix


def test_the_order_test_can_fail():
    class First(rules.Sum):
        def weigh(self, gram):
            return super().weigh(gram).cumsum()

    gram = GRAMS["eight"]
    order = torch.arange(8).flip(0)
    assert not torch.allclose(First()(gram)[order], First()(gram[order][:, order]))


# How the weights answer when all gradients are multiplied by s: w(s^2 G) = s^power w(G).
POWERS = dict.fromkeys(ON_GRAM, 0.0) | {
    "NashMTL": -1.0,
    "FairGrad 0.1": -0.2 / 1.1,
    "FairGrad 0.5": -1 / 1.5,
    "FairGrad 2": -4 / 3,
    "FairGrad 10": -20 / 11,
}


@pytest.mark.parametrize("name", [name for name in ON_GRAM if name != "PCD"])
def test_scaling_of_all_gradients(name):
    for matrix in ["eight", "ratio 1000", "rank 4 of 8, common part", "a zero row"]:
        gram = GRAMS[matrix]
        weights, larger = (ON_GRAM[name](len(gram))(scale**2 * gram) for scale in (1.0, 1024.0))
        torch.testing.assert_close(larger, 1024.0 ** POWERS[name] * weights, rtol=1e-9, atol=0, msg=matrix)


@pytest.mark.parametrize("name", ["NashMTL", "ConFIG", "RotoGradScale", "IMTLG"])
def test_direction_ignores_the_scale_of_single_gradients(name):
    rows = ROWS["eight"]
    factors = torch.logspace(-3, 3, 8).double()[:, None]
    directions = []
    for scaled_rows in (rows, rows * factors):
        weights = ON_GRAM[name](8)(scaled_rows @ scaled_rows.T)
        directions.append(torch.nn.functional.normalize(weights @ scaled_rows, dim=0))
    torch.testing.assert_close(*directions, rtol=0, atol=1e-9)
    mean = rules.Mean()(rows @ rows.T)
    control = [torch.nn.functional.normalize(mean @ r, dim=0) for r in (rows, rows * factors)]
    assert (control[0] - control[1]).norm() > 0.1


@pytest.mark.parametrize("name", ["MGDA", "UPGrad", "DualProj", "NashMTL", "FairGrad 2", "FairGrad 10"])
def test_no_task_is_hurt(name):
    for matrix, gram in GRAMS.items():
        weights = DETERMINISTIC[name](len(gram))(gram)
        _, _, products, image = scaled(gram, weights)
        assert (image >= -1e-12 * products.abs().sum()).all(), matrix


def test_the_mean_hurts_a_task():
    _, _, products, image = scaled(GRAMS["two in conflict"], torch.tensor([1.0, 9.0]).double())
    assert (image < -1e-3 * products.abs().sum()).any()


@pytest.mark.parametrize("name", ["NashMTL", "FairGrad 2", "ConFIG", "CAGrad"])
def test_every_task_gains_where_a_direction_helps_all(name):
    for matrix in ["eight", "common part", "ratio 1e6, common part", "rank 4 of 8, common part", "forty"]:
        gram = GRAMS[matrix]
        shortest = min_norm_weights(gram)
        assert shortest @ gram @ shortest > 0, matrix
        rule = rules.CAGrad(c=0.999) if name == "CAGrad" else DETERMINISTIC[name](len(gram))
        assert (scaled(gram, rule(gram))[3] > 0).all(), matrix


# What a rule gives a task whose gradient is zero, as its docstring says.
ZERO = dict.fromkeys(["IMTLG", "NashMTL", "AlignedMTL", "FairGrad 2", "ConFIG", "PCD", "RotoGradScale"], 0.0)
ZERO |= {"Sum": 1.0, "PCGrad": 1.0, "GradVac": 1.0}
ZERO |= dict.fromkeys(["Mean", "CAGrad", "UPGrad", "DualProj"], 0.25)
ZERO |= {"MGDA": 1.0}


@pytest.mark.parametrize("name", ZERO)
def test_a_zero_gradient(name):
    assert ON_GRAM[name](4)(GRAMS["a zero row"])[2] == ZERO[name]


def test_a_zero_gradient_leaves_the_others_alone():
    rows = ROWS["a zero row"]
    alive = rows[[0, 1, 3]]
    for name in ["IMTLG", "NashMTL", "AlignedMTL", "FairGrad 2", "ConFIG", "RotoGradScale"]:
        weights = ON_GRAM[name](4)(rows @ rows.T)[[0, 1, 3]]
        torch.testing.assert_close(weights, ON_GRAM[name](3)(alive @ alive.T), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ON_GRAM)
def test_a_matrix_that_is_not_finite_gives_nan_and_keeps_the_state(name):
    gram = GRAMS["eight"].clone()
    rule = ON_GRAM[name](8)
    before = {key: value.clone() for key, value in rule.state_dict().items()}
    gram[2, 3] = torch.inf
    assert rule(gram).isnan().all()
    for key, value in rule.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("name", ON_ROWS)
def test_rows_that_are_not_finite_show_in_the_direction_and_keep_the_state(name):
    make = ON_ROWS[name]
    rows = rows_of(3, 6).float()
    broken = rows.clone()
    broken[1, 2] = torch.inf
    one, two = make(3), make(3)
    direction, weights = one.combine([broken], broken @ broken.T)
    assert not direction[0].isfinite().all()
    assert weights.isnan().all()
    assert torch.equal(one.combine([rows], rows @ rows.T)[0][0], two.combine([rows], rows @ rows.T)[0][0])


@pytest.mark.parametrize("name", ON_GRAM)
def test_any_float_dtype_comes_in(name):
    make = ON_GRAM[name]
    for dtype in (torch.float32, torch.bfloat16):
        gram = GRAMS["eight"].to(dtype)
        assert torch.equal(make(8)(gram), make(8)(gram.double()))
