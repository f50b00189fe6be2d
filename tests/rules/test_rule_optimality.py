"""The optimality conditions of each rule's definition; these tests solve nothing themselves."""

import pytest
import torch
from support.rule_zoo import GRAMS, ROWS, rows_of, scaled

from mtl import rules
from mtl.rules import upgrad
from mtl.rules.solvers import dual_cone_multipliers, min_norm_weights, unit_rows


def reach(gram):
    """The length of the shortest convex combination of unit rows: 0 if no direction improves every task."""
    norms = gram.diagonal().sqrt()
    weights = min_norm_weights(gram / norms[:, None] / norms)
    return (weights @ (gram / norms[:, None] / norms) @ weights).clamp(min=0).sqrt()


def mgda_gap(gram, weights):
    """The optimality gap of the squared length, in units of the shortest gradient's square, and its rounding error."""
    norms = gram.diagonal().sqrt()
    unit = norms.min()
    image = gram / unit / unit @ weights
    return weights @ image - image.min(), 1e-14 * (weights @ norms / unit) ** 2


@pytest.mark.parametrize("matrix", [m for m, g in GRAMS.items() if (g.diagonal() > 0).all()])
def test_mgda(matrix):
    weights = rules.MGDA()(GRAMS[matrix])
    assert (weights >= 0).all()
    assert weights.sum().item() == pytest.approx(1, abs=1e-12)
    gap, rounding = mgda_gap(GRAMS[matrix], weights)
    assert gap <= 1e-8 + rounding


def test_mgda_notices_a_wrong_weight():
    gap, rounding = mgda_gap(GRAMS["eight"], rules.MGDA()(GRAMS["eight"]).roll(1))
    assert gap > 1e-2 + rounding


def test_mgda_is_zero_on_zero_gradients():
    torch.testing.assert_close(rules.MGDA()(GRAMS["two zero rows"]), torch.tensor([0.5, 0, 0.5, 0]).double())


def cagrad_gap(gram, weights, c):
    """The violation of the ball, and the gap between the smallest gain and its dual bound; both 0 at the optimum."""
    alive = gram.diagonal() > 0
    mean = torch.full((len(gram),), 1 / len(gram), dtype=torch.float64)
    length = (mean @ gram @ mean).sqrt()
    radius, added = c * length, weights - mean
    outside = (added @ gram @ added).clamp(min=0).sqrt() / radius - 1
    # Any point of the simplex bounds the worst gain from above: that of the direction, and the shortest one.
    norms = gram.diagonal()[alive].sqrt()
    points = [min_norm_weights(gram[alive][:, alive])]
    if added[alive].sum() > 0:
        points.append(added[alive].clamp(min=0) / added[alive].clamp(min=0).sum())
    bounds = []
    for point in points:
        square = point @ gram[alive][:, alive] @ point - 1e-14 * (point @ norms) ** 2
        bounds.append(point @ (gram @ mean)[alive] + radius * square.clamp(min=0).sqrt())
    worst = (gram @ weights)[alive].min()
    return (
        outside,
        (min(bounds) - worst) / (norms.min() * length),
        1e-14 * (added.abs()[alive] @ norms / length),
    )


@pytest.mark.parametrize("c", [0.01, 0.5, 0.99, 2.0])
@pytest.mark.parametrize("matrix", [m for m in GRAMS if m not in ("all zero", "one zero")])
def test_cagrad(matrix, c):
    gram = GRAMS[matrix]
    weights = rules.CAGrad(c)(gram)
    if (gram @ torch.ones(len(gram)).double()).abs().max() < 1e-12 * gram.abs().max():
        assert torch.equal(weights, torch.full_like(weights, 1 / len(gram)))  # the mean is zero
        return
    outside, gap, rounding = cagrad_gap(gram, weights, c)
    assert outside <= 1e-8
    assert gap <= 1e-8 + rounding


def test_cagrad_notices_another_radius():
    gram = GRAMS["eight"]
    assert cagrad_gap(gram, rules.CAGrad(0.4)(gram), 0.5)[1] > 1e-3
    assert cagrad_gap(gram, rules.CAGrad(0.6)(gram), 0.5)[0] > 1e-3


def projection_error(correlation, own, added):
    """The violation of the conditions for u_own + sum_j s_j u_j to be a projection onto the dual cone."""
    gains = correlation[own] + added @ correlation
    size = 1 + added.abs().sum()
    return max(-added.min(), -gains.min() / size, (added * gains).abs().max() / size)


@pytest.mark.parametrize("matrix", GRAMS)
def test_upgrad(matrix):
    gram = GRAMS[matrix]
    rows = unit_rows(gram.numpy())
    correlation = torch.from_numpy(rows.correlation)
    projections = torch.from_numpy(upgrad._projections(rows))
    for own, added in enumerate(projections):
        assert projection_error(correlation, own, added) <= 1e-8, own
    # The rule is their mean, on the gradients' own scale.
    norms = torch.from_numpy(rows.norms)
    expected = (norms @ (torch.eye(len(norms)) + projections)) / norms / len(gram)
    weights = rules.UPGrad()(gram)[torch.from_numpy(rows.alive)]
    # Among dependent rows the weights may be shared out in several ways; the direction is one.
    difference = norms * (weights - expected)
    assert (difference @ correlation @ difference).clamp(min=0).sqrt() <= 1e-7 * (norms * expected).sum()


def test_upgrad_notices_an_unfinished_projection():
    correlation = torch.from_numpy(unit_rows(GRAMS["eight"].numpy()).correlation)
    assert projection_error(correlation, 0, torch.zeros(8).double()) > 1e-3


def test_upgrad_takes_the_slower_way_for_what_the_quick_one_leaves():
    rows = unit_rows(GRAMS["rank 20 of 40"].numpy())
    quick, solved = upgrad._exchange(rows.correlation, rounds=1)
    assert not solved.all()
    slow = dual_cone_multipliers(rows.factor, rows.factor[:, 0])
    error = projection_error(torch.from_numpy(rows.correlation), 0, torch.from_numpy(slow))
    assert error <= 1e-8 < projection_error(torch.from_numpy(rows.correlation), 0, torch.from_numpy(quick[0]))


@pytest.mark.parametrize("matrix", [m for m in GRAMS if m not in ("all zero", "one zero")])
def test_dualproj(matrix):
    gram = GRAMS[matrix]
    weights = rules.DualProj()(gram)
    norms, _, _, image = scaled(gram, weights)
    added = norms * (weights[gram.diagonal() > 0] - 1 / len(gram))
    size = norms.max() + added.abs().sum()
    assert (added >= -1e-12 * size).all()
    assert (image >= -1e-12 * size).all()
    assert (added * image).abs().max() <= 1e-12 * size**2


FAIR = {"NashMTL": (rules.NashMTL(), 1.0)}
FAIR |= {f"FairGrad {alpha}": (rules.FairGrad(alpha), alpha) for alpha in (0.1, 0.5, 1.0, 2.0, 10.0)}


def fair_error(gram, weights, alpha):
    """The residual of G w = w^(-1/alpha), relative to its right side plus the rounding error of its left side."""
    alive = gram.diagonal() > 0
    gram, weights = gram[alive][:, alive], weights[alive]
    right = weights.pow(-1 / alpha)
    return ((gram @ weights - right).abs() / (right + 1e-6 * (gram.abs() @ weights))).max()


@pytest.mark.parametrize("name", FAIR)
def test_fairness(name):
    rule, alpha = FAIR[name]
    seen = 0
    for matrix, gram in GRAMS.items():
        alive = gram.diagonal() > 0
        if not alive.any() or reach(gram[alive][:, alive]) < 1e-5:
            continue
        weights = rule(gram)
        assert (weights[alive] > 0).all(), matrix
        assert fair_error(gram, weights, alpha) <= 1e-8, matrix
        seen += 1
    assert seen > 20


def random_grams(count):
    """Matrices of many sizes, ranks and norm ratios; the tenth power of alpha = 0.1 makes some of them hard."""
    generator = torch.Generator().manual_seed(1)

    def uniform(scale):
        return float(torch.rand(1, generator=generator) * scale)

    for draw in range(count):
        tasks, size = (int(torch.randint(2, top, (1,), generator=generator)) for top in (17, 40))
        spread, common = uniform(6), uniform(3)
        rows = torch.randn(tasks, size, generator=generator).double()
        rows = rows + common * torch.randn(1, size, generator=generator).double()
        rows = rows * 10 ** (torch.rand(tasks, 1, generator=generator).double() * spread - spread / 2)
        if draw % 5 == 0 and tasks > 3:
            rows[0] = -3 * rows[1]
        if draw % 7 == 0 and tasks > 3:
            rows[2] = 2 * rows[1]
        yield rows @ rows.T


@pytest.mark.parametrize("alpha", [0.1, 1.0, 10.0])
def test_fairness_on_random_matrices(alpha):
    for gram in random_grams(200):
        weights = rules.FairGrad(alpha)(gram)
        assert weights.isfinite().all()
        if reach(gram) > 1e-5:
            assert fair_error(gram, weights, alpha) <= 1e-8


@pytest.mark.parametrize("c", [0.05, 0.5, 2.0])
def test_cagrad_on_random_matrices(c):
    for gram in random_grams(100):
        outside, gap, rounding = cagrad_gap(gram, rules.CAGrad(c)(gram), c)
        assert outside <= 1e-8
        assert gap <= 1e-8 + rounding


def test_nash_equation_without_any_allowance():
    for matrix in [
        "eight",
        "common part",
        "forty",
        "sixty-four",
        "ratio 1e6",
        "ratio 1e6, common part",
        "tiny",
    ]:
        weights = rules.NashMTL()(GRAMS[matrix])
        assert (weights * (GRAMS[matrix] @ weights) - 1).abs().max() <= 1e-8, matrix


def test_nash_normalised_ignores_the_size_of_all_gradients():
    gram = GRAMS["eight"]
    weights = rules.NashMTL(normalize=True)(gram)
    normalised = gram / gram.norm()
    assert (weights * (normalised @ weights) - 1).abs().max() <= 1e-12
    for other in ("tiny", "huge"):
        torch.testing.assert_close(rules.NashMTL(normalize=True)(GRAMS[other]), weights, rtol=1e-9, atol=0)
    assert not torch.allclose(rules.NashMTL()(GRAMS["tiny"]), rules.NashMTL()(gram))


def test_fairness_notices_another_alpha():
    assert fair_error(GRAMS["eight"], rules.FairGrad(1.1)(GRAMS["eight"]), 1.0) > 1e-2


@pytest.mark.parametrize("name", FAIR)
@pytest.mark.parametrize("matrix", ["opposite", "opposite, two", "rank 20 of 40", "mean of zero"])
def test_where_no_direction_helps_everyone_the_direction_is_zero(name, matrix):
    gram = GRAMS[matrix]
    assert reach(gram) < 1e-6
    weights = FAIR[name][0](gram)
    _, _, products, _ = scaled(gram, weights)
    direction = weights @ ROWS[matrix]
    assert direction.norm() <= 1e-6 * products.sum()
    if name == "NashMTL":
        assert products.sum().item() == pytest.approx(len(gram))


def test_imtl_g_projections_are_equal():
    for matrix in ["two", "eight", "forty", "ratio 1e6", "duplicated", "rank 1 of 3"]:
        weights = rules.IMTLG()(GRAMS[matrix])
        image = scaled(GRAMS[matrix], weights)[3]
        assert weights.sum().item() == pytest.approx(1)
        torch.testing.assert_close(image, image.mean().expand_as(image), rtol=1e-8, atol=0)


def test_imtl_g_without_such_a_direction_is_zero():
    weights = rules.IMTLG()(GRAMS["opposite"])
    assert weights.sum().item() == pytest.approx(1)
    assert (weights @ ROWS["opposite"]).norm() < 1e-9


def test_config_cosines_and_length():
    for matrix in ["two", "eight", "forty", "ratio 1e6", "duplicated"]:
        rows = ROWS[matrix]
        direction = rules.ConFIG()(GRAMS[matrix]) @ rows
        unit = direction / direction.norm()
        cosines = rows @ unit / rows.norm(dim=1)
        assert cosines.min() > 0
        torch.testing.assert_close(cosines, cosines.mean().expand_as(cosines), rtol=1e-7, atol=0)
        torch.testing.assert_close(direction.norm(), (rows @ unit).sum(), rtol=1e-7, atol=0)


def test_pcd_constraints():
    for matrix in ["eight", "ratio 1e6", "common part", "duplicated"]:
        rows, tau = ROWS[matrix], 0.3
        weights = rules.PCD(len(rows), tau=tau, eps=0)(GRAMS[matrix])
        direction = weights @ rows
        torch.testing.assert_close(direction.norm(), rows[0].norm())
        # After one step the normalised gradients are the unit ones. The direction is d = scale * (u_0 + sum
        # v u):
        units = rows / rows.norm(dim=1, keepdim=True)
        products = weights * rows.norm(dim=1)
        multipliers = products / (products[0] - 0)
        gains = units[1:] @ (units.T @ multipliers)
        assert (multipliers[1:] >= 0).all()
        tight = multipliers[1:] > 0
        assert (gains >= tau - 1e-8).all(), matrix
        assert (gains[tight] - tau).abs().max() < 1e-8 if tight.any() else True


def test_pcd_special_cases():
    assert torch.equal(rules.PCD(3)(torch.zeros(3, 3)), torch.zeros(3).double())
    contradiction = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]).double()
    assert rules.PCD(3, tau=0.5)(contradiction @ contradiction.T).tolist() == [1, 0, 0]
    assert rules.PCD(3, primary=2, tau=0.0)(GRAMS["orthogonal"]).tolist() == [0, 0, 1]
    assert rules.PCD(3, primary=0)(torch.eye(2), present=[1, 2]).tolist() == [1, 1]


def test_pcd_averages_are_corrected_for_their_start_and_for_absence():
    rule = rules.PCD(3, tau=0.5, beta=0.9, eps=0)
    rule(torch.diag(torch.tensor([4.0, 9.0])), present=[0, 1])
    rule(torch.diag(torch.tensor([4.0, 16.0])), present=[0, 2])
    # Task 0 and 2 have had one square only, which then is their average; task 1 has had 9 and 36.
    weights = rule(torch.diag(torch.tensor([4.0, 36.0, 16.0])))
    average = (0.9 * 0.1 * 9 + 0.1 * 36) / (1 - 0.9**2)
    lengths = torch.tensor([1.0, 6 / average**0.5, 1.0]).double()  # |h_k|; the gradients are orthogonal
    direction = torch.stack([lengths[0], 0.5 * lengths[1], 0.5 * lengths[2]])
    expected = 2 * direction / direction.norm() / torch.tensor([2.0, 6.0, 4.0])
    torch.testing.assert_close(weights, expected)


def test_sdmgrad_comes_near_its_minimum():
    gram = GRAMS["eight"]
    rule = rules.SDMGrad(8, lr=0.05, iterations=500)
    weights = (1.3 * rule(gram) - 0.3 / 8).clamp(min=0)
    slope = gram @ (weights + 0.3 / 8)
    assert weights @ slope - slope.min() < 1e-6 * gram.diagonal().mean()
    equal = torch.full((8,), 1 / 8, dtype=torch.float64)
    control = gram @ (equal + 0.3 / 8)
    assert equal @ control - control.min() > 1e-2 * gram.diagonal().mean()


def test_krum_takes_the_gradient_among_its_neighbours():
    rows = rows_of(6, 4) * 0.1 + 1
    rows[4] += 50
    weights = rules.Krum(byzantine=1, selected=3)(rows @ rows.T)
    assert weights[4] == 0
    squares = torch.cdist(rows, rows).square().sort(1).values[:, 1:4].sum(1)
    assert set(weights.nonzero().flatten().tolist()) == set(squares.topk(3, largest=False).indices.tolist())
    assert rules.Krum()(GRAMS["opposite, two"]).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("byzantine", [0, 1, 2])
def test_krum_counts_the_nearest_of_all_but_the_byzantine(byzantine):
    for seed in range(20):
        rows = rows_of(7, 3, seed=seed)
        nearest = torch.cdist(rows, rows).square().sort(1).values[:, 1 : 7 - byzantine - 1]
        expected = torch.nn.functional.one_hot(nearest.sum(1).argmin(), 7).double()
        assert torch.equal(rules.Krum(byzantine=byzantine)(rows @ rows.T), expected)


def test_rotograd_scale_makes_lengths_equal():
    rule = rules.RotoGradScale(8)
    rule(GRAMS["eight"])
    later = ROWS["ratio 1000"]
    lengths = rule(later @ later.T)[:, None] * later
    torch.testing.assert_close(lengths.norm(dim=1), lengths.norm(dim=1)[:1].expand(8))
    first, now = ROWS["eight"].norm(dim=1), later.norm(dim=1)
    share = now / first / (now / first).sum()
    torch.testing.assert_close(lengths.norm(dim=1)[0], share @ now)
