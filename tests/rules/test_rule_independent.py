"""The rules against independent solutions: brute force, general optimizers, many digits, other libraries."""

import mpmath
import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from support.rule_zoo import GRAMS, ROWS, apart, rows_of

from mtl import rules

SMALL = ["two", "two in conflict", "three", "duplicated", "rank 1 of 3", "opposite", "orthogonal"]
DRAWN = {f"draw {seed}": apart(rows_of(5, 7, seed=seed), 10.0) for seed in range(4)}
MATRICES = {name: GRAMS[name] for name in SMALL} | {name: rows @ rows.T for name, rows in DRAWN.items()}


def on_simplex(function, count):
    best = None
    for start in (np.full(count, 1 / count), *np.eye(count) * 0.9 + 0.1 / count):
        found = minimize(
            function,
            start,
            method="SLSQP",
            bounds=[(0, 1)] * count,
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
            options={"ftol": 1e-15, "maxiter": 500},
        )
        if best is None or found.fun < best:
            best = found.fun
    return best


@pytest.mark.parametrize("matrix", MATRICES)
def test_mgda_against_slsqp(matrix):
    gram = MATRICES[matrix].numpy()
    ours = rules.MGDA()(MATRICES[matrix]).numpy()
    best = on_simplex(lambda w: w @ gram @ w, len(gram))
    assert ours @ gram @ ours <= best + 1e-9 * gram.max()
    assert ours @ gram @ ours >= best - 1e-5 * gram.max()


@pytest.mark.parametrize("matrix", MATRICES)
def test_cagrad_against_slsqp(matrix):
    gram, c = MATRICES[matrix].numpy(), 0.5
    mean = np.full(len(gram), 1 / len(gram))
    radius = c * np.sqrt(mean @ gram @ mean)
    best = on_simplex(lambda w: w @ gram @ mean + radius * np.sqrt(max(w @ gram @ w, 0)), len(gram))
    # Strong duality: the worst gain is the minimum of the paper's dual problem.
    worst = (gram @ rules.CAGrad(c)(MATRICES[matrix]).numpy()).min()
    assert worst == pytest.approx(best, abs=1e-6 * gram.max())
    assert (gram @ rules.CAGrad(0.3)(MATRICES[matrix]).numpy()).min() < worst + 1e-12 * gram.max()


def project(rows, target):
    """argmin |d - target| subject to rows @ d >= 0, over d and not over multipliers."""
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    found = minimize(
        lambda d: ((d - target) ** 2).sum(),
        target,
        jac=lambda d: 2 * (d - target),
        method="SLSQP",
        constraints={"type": "ineq", "fun": lambda d: units @ d, "jac": lambda d: units},
        options={"ftol": 1e-14, "maxiter": 500},
    )
    return found.x


@pytest.mark.parametrize("name", [*SMALL, *DRAWN])
def test_projections_against_slsqp(name):
    rows = (ROWS | DRAWN)[name].numpy()
    gram = torch.from_numpy(rows @ rows.T)
    mean = rows.mean(0)
    for rule, expected in (
        (rules.DualProj(), project(rows, mean)),
        (rules.UPGrad(), np.mean([project(rows, row) for row in rows], 0)),
    ):
        np.testing.assert_allclose(rule(gram).numpy() @ rows, expected, atol=1e-6 * np.abs(rows).max())


def test_the_projections_do_something():
    rows = DRAWN["draw 0"].numpy()
    assert np.abs(project(rows, rows[0]) - rows[0]).max() > 1e-2


@pytest.mark.parametrize("ratio", [1.0, 1e3, 1e6])
@pytest.mark.parametrize("size", [9, 3])
def test_aligned_mtl_against_sixty_digits(ratio, size):
    rows = apart(rows_of(5, size), ratio)
    with mpmath.workdps(60):
        matrix = mpmath.matrix(rows.tolist())
        values, vectors = mpmath.eigsy(matrix * matrix.T)
        kept = [i for i in range(5) if values[i] > 1e-25 * max(values)]
        weights = mpmath.zeros(5, 1)
        for i in kept:
            weights += vectors[:, i] * sum(vectors[:, i]) * mpmath.sqrt(min(values[k] for k in kept) / values[i])
        expected = torch.tensor([float(weight) for weight in weights], dtype=torch.float64)
    gram = rows @ rows.T
    torch.testing.assert_close(rules.AlignedMTL()(gram), expected, rtol=1e-8, atol=0)
    if ratio == 1e6 and size == 9:  # what the usual way gives
        values, vectors = torch.linalg.eigh(gram)
        usual = vectors @ (vectors.sum(0) * (values[0] / values).abs().sqrt())
        assert not torch.allclose(usual, expected, rtol=1e-8, atol=0)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 3.0])
def test_fairness_against_many_digits(alpha):
    gram = MATRICES["draw 1"]
    ours = rules.FairGrad(alpha)(gram)
    with mpmath.workdps(40):
        matrix = mpmath.matrix(gram.tolist())

        def equation(*weights):
            image = matrix * mpmath.matrix(weights)
            return [value - weight ** (-1 / mpmath.mpf(alpha)) for value, weight in zip(image, weights, strict=True)]

        found = mpmath.findroot(equation, [mpmath.mpf(w) for w in (1.01 * ours).tolist()])
        expected = torch.tensor([float(weight) for weight in found], dtype=torch.float64)
    torch.testing.assert_close(ours, expected, rtol=1e-11, atol=0)


def slow_pcgrad(rows, orders):
    """Algorithm 1 of Yu et al. on the vectors themselves."""
    total = torch.zeros_like(rows[0])
    for row, order in zip(rows, orders, strict=True):
        projected = row.clone()
        for other in order.tolist():
            if projected @ rows[other] < 0:
                projected -= projected @ rows[other] / (rows[other] @ rows[other]) * rows[other]
        total += projected
    return total


def slow_gradvac(rows, orders, targets, beta):
    """Algorithm 1 of Wang et al. on the vectors themselves; changes ``targets``."""
    total = torch.zeros_like(rows[0])
    for i, order in enumerate(orders):
        turned = rows[i].clone()
        for j in order.tolist():
            cosine, goal = turned @ rows[j] / (turned.norm() * rows[j].norm()), targets[i, j].clone()
            if cosine < goal:
                gain = goal * (1 - cosine**2).sqrt() - cosine * (1 - goal**2).sqrt()
                turned = turned + turned.norm() * gain / (rows[j].norm() * (1 - goal**2).sqrt()) * rows[j]
            targets[i, j] = (1 - beta) * goal + beta * cosine
        total += turned
    return total


@pytest.mark.parametrize("matrix", ["three", "eight", "ratio 1000", "rank 4 of 8", "forty"])
def test_pcgrad_and_gradvac_against_loops_on_vectors(matrix):
    rows = ROWS[matrix]
    pcgrad, twin = rules.PCGrad(seed=5), rules.PCGrad(seed=5)
    gradvac, other = rules.GradVac(len(rows), beta=0.3, seed=6), rules.GradVac(len(rows), seed=6)
    targets = torch.zeros(len(rows), len(rows)).double()
    for _ in range(3):
        orders = twin.orders(len(rows))
        expected = slow_pcgrad(rows, orders)
        torch.testing.assert_close(pcgrad(rows @ rows.T) @ rows, expected, rtol=1e-9, atol=1e-9)
        orders = other.orders(len(rows))
        expected = slow_gradvac(rows, orders, targets, 0.3)
        torch.testing.assert_close(gradvac(rows @ rows.T) @ rows, expected, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(gradvac.targets, targets, rtol=1e-9, atol=1e-12)


def test_another_order_gives_another_direction():
    rows, rule = ROWS["rank 4 of 8"], rules.PCGrad()
    one, other = (slow_pcgrad(rows, rule.orders(8)) for _ in range(2))
    assert (one - other).norm() > 1e-3 * one.norm()


def test_orders_leave_out_the_task_itself_and_differ():
    orders = rules.PCGrad().orders(6)
    for own, order in enumerate(orders.tolist()):
        assert sorted([own, *order]) == list(range(6))
    assert len({tuple(order) for order in orders.tolist()}) > 1


# ------------------------------------------------------------------------------------------- TorchJD


def torchjd_weights(name, gram, *args, **kwargs):
    weighting = getattr(pytest.importorskip("torchjd.aggregation"), name)(*args, **kwargs)
    return weighting(gram).double()


def exact_projector():
    pytest.importorskip("quadprog")
    return pytest.importorskip("torchjd.linalg").QuadprogProjector(norm_eps=0, reg_eps=1e-10)


def torchjd_cagrad(gram):
    pytest.importorskip("cvxpy")
    return torchjd_weights("CAGradWeighting", gram, c=0.5)


AGREE = {
    "UPGrad": (
        rules.UPGrad(),
        lambda g: torchjd_weights("UPGradWeighting", g, projector=exact_projector()),
        1e-6,
    ),
    "DualProj": (
        rules.DualProj(),
        lambda g: torchjd_weights("DualProjWeighting", g, projector=exact_projector()),
        1e-6,
    ),
    # Frank-Wolfe's error falls as one over the number of its iterations.
    "MGDA": (rules.MGDA(), lambda g: torchjd_weights("MGDAWeighting", g, epsilon=1e-7, max_iters=5000), 3e-2),
    "IMTLG": (rules.IMTLG(), lambda g: torchjd_weights("IMTLGWeighting", g), 1e-8),
    "AlignedMTL": (rules.AlignedMTL(), lambda g: torchjd_weights("AlignedMTLWeighting", g) * len(g), 1e-7),
    "FairGrad": (rules.FairGrad(2.0), lambda g: torchjd_weights("FairGradWeighting", g, alpha=2.0), 1e-6),
    "CAGrad": (rules.CAGrad(0.5), torchjd_cagrad, 1e-4),
}


@pytest.mark.parametrize("matrix", ["two", "three", "eight", "common part", "bf16 rows"])
@pytest.mark.parametrize("name", AGREE)
def test_agreement_with_torchjd(name, matrix):
    rule, theirs, tolerance = AGREE[name]
    gram = GRAMS[matrix]

    def length(weights):
        return (weights @ gram @ weights).clamp(min=0).sqrt()

    expected = theirs(gram)
    ours = rule(gram)
    assert length(ours - expected) <= tolerance * length(ours)
    assert length(ours * torch.linspace(1, 1.5, len(gram)).double() - expected) > tolerance * length(ours)


def test_agreement_with_torchjd_on_rows():
    aggregation = pytest.importorskip("torchjd.aggregation")
    rows = ROWS["eight"]
    ours = rules.ConFIG()(rows @ rows.T) @ rows
    torch.testing.assert_close(ours, aggregation.ConFIG()(rows), rtol=1e-9, atol=1e-12)
    ours = rules.TrimmedMean(trim=2).combine([rows], rows @ rows.T)[0][0]
    torch.testing.assert_close(ours, aggregation.TrimmedMean(2)(rows), rtol=1e-12, atol=1e-12)
    # Without the warm-up theirs takes the first step's excess risk as it is, and not relative to itself.
    theirs, excess_mtl = aggregation.ExcessMTL(n_warmup_steps=1), rules.ExcessMTL(8)
    # Their average starts at zero and is corrected, as ours.
    pcd, their_pcd = rules.PCD(8, tau=0.2), aggregation.PCD(tau=0.2)
    for step in range(4):
        rows = rows_of(8, 20, seed=step) * torch.linspace(1, 1 + step, 8).double()[:, None]
        ours = excess_mtl.combine([rows], rows @ rows.T)[0][0]
        torch.testing.assert_close(ours / 8, theirs(rows), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(pcd(rows @ rows.T) @ rows, their_pcd(rows), rtol=1e-6, atol=1e-9)


def test_torchjd_misses_where_norms_differ_and_ours_does_not():
    rows = ROWS["ratio 1000"]
    gram = rows @ rows.T
    theirs = torchjd_weights("UPGradWeighting", gram) @ rows
    ours = rules.UPGrad()(gram) @ rows
    cosines = [(rows @ d / rows.norm(dim=1) / d.norm()).min() for d in (ours, theirs)]
    assert cosines[0] > -1e-9
    assert cosines[1] < -1e-3
