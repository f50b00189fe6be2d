import math
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from mtl.affinity import named_affinity
from mtl.conflict import agreement_metrics, conflict_metrics, cosines
from mtl.descriptions import AFFINITIES, DESCRIPTIONS, TOLERANCE, describe, of_orthogonal


def gram_of(*rows):
    rows = torch.tensor(rows, dtype=torch.float64)
    return rows @ rows.T


def reference(rows, tasks):
    """The definitions of Yu et al., Senushkin et al. and Désidéri on the rows themselves, in NumPy."""
    norms = np.linalg.norm(rows, axis=1)
    pairs = list(combinations(range(len(rows)), 2))
    cos = {(i, j): rows[i] @ rows[j] / norms[i] / norms[j] for i, j in pairs}
    singular = np.linalg.svd(rows, compute_uv=False)
    simplex = [{"type": "eq", "fun": lambda w: w.sum() - 1}]
    start = np.full(len(rows), 1 / len(rows))
    shortest = minimize(
        lambda w: np.sum((w @ rows) ** 2), start, bounds=[(0, 1)] * len(rows), constraints=simplex,
        method="SLSQP", options={"ftol": 1e-16, "maxiter": 1000},
    )  # fmt: skip
    return {
        **{f"conflict/norm/{t}": n for t, n in zip(tasks, norms, strict=True)},
        **{f"conflict/cos/{tasks[i]}~{tasks[j]}": c for (i, j), c in cos.items()},
        "conflict/cos_mean": np.mean(list(cos.values())),
        "conflict/cos_min": min(cos.values()),
        "conflict/fraction": np.mean([c < -TOLERANCE for c in cos.values()]),
        "conflict/magnitude_similarity": np.mean(
            [2 * norms[i] * norms[j] / (norms[i] ** 2 + norms[j] ** 2) for i, j in pairs]
        ),
        "conflict/condition_number": singular[0] / singular[-1],
        "conflict/rank": len(rows),
        "conflict/stationarity": math.sqrt(max(shortest.fun, 0)) / norms.mean(),
        "conflict/cancellation": 1 - np.linalg.norm(rows.sum(0)) / norms.sum(),
    }


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("count", [2, 3, 6])
def test_against_the_definitions_on_the_rows(count, seed):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(count, 20)) * 10.0 ** rng.uniform(-1, 1, size=(count, 1))
    tasks = [f"t{i}" for i in range(count)]
    metrics = conflict_metrics(torch.from_numpy(rows @ rows.T), tasks)
    expected = reference(rows, tasks)
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, rel=2e-5, abs=1e-7), name
    permuted = conflict_metrics(torch.from_numpy(rows[::-1] @ rows[::-1].T), tasks)
    assert permuted != pytest.approx(expected, rel=1e-3)  # negative control: the names matter


def test_closed_forms_for_two_tasks():
    metrics = conflict_metrics(gram_of([3.0, 0.0], [-1.0, 1.0]), ["a", "b"])
    assert metrics["conflict/cos/a~b"] == pytest.approx(-1 / math.sqrt(2))
    assert metrics["conflict/fraction"] == 1
    assert metrics["conflict/magnitude_similarity"] == pytest.approx(2 * 3 * math.sqrt(2) / 11)
    assert metrics["conflict/cancellation"] == pytest.approx(1 - math.sqrt(5) / (3 + math.sqrt(2)))
    # the foot of the perpendicular from the origin on the segment between the two ends
    assert metrics["conflict/stationarity"] == pytest.approx(3 / math.sqrt(17) / ((3 + math.sqrt(2)) / 2))


def test_opposite_gradients_are_stationary_and_cancel():
    metrics = conflict_metrics(gram_of([1.0, 2.0], [-1.0, -2.0]), ["a", "b"])
    assert metrics["conflict/stationarity"] == pytest.approx(0, abs=1e-7)
    assert metrics["conflict/cancellation"] == pytest.approx(1, abs=1e-7)
    assert metrics["conflict/rank"] == 1
    assert metrics["conflict/condition_number"] == pytest.approx(
        1000
    )  # infinite, and not the 1 of well-conditioned rows


def test_one_task_has_no_pairs():
    metrics = conflict_metrics(gram_of([3.0, 4.0]), ["only"])
    assert metrics == {
        "conflict/norm/only": 5.0, "conflict/condition_number": 1.0, "conflict/rank": 1,
        "conflict/stationarity": 1.0, "conflict/cancellation": 0.0,
    }  # fmt: skip


def test_a_zero_gradient_has_no_cosine():
    metrics = conflict_metrics(gram_of([1.0, 0.0], [0.0, 0.0], [1.0, 1.0]), ["a", "zero", "c"])
    assert "conflict/cos/a~zero" not in metrics and "conflict/cos/zero~c" not in metrics
    assert metrics["conflict/cos_mean"] == pytest.approx(1 / math.sqrt(2))
    assert metrics["conflict/norm/zero"] == 0 and metrics["conflict/stationarity"] == 0
    assert metrics["conflict/rank"] == 2 and metrics["conflict/condition_number"] == pytest.approx(1000)
    # 0 for the two pairs with the zero gradient: norms 1 and 0 are as unlike as can be
    assert metrics["conflict/magnitude_similarity"] == pytest.approx(2 * math.sqrt(2) / 3 / 3)
    assert torch.isnan(cosines(gram_of([1.0, 0.0], [0.0, 0.0]))[0, 1])


def test_nothing_but_zero_gradients():
    assert conflict_metrics(torch.zeros(2, 2), ["a", "b"]) == {"conflict/norm/a": 0.0, "conflict/norm/b": 0.0}


@pytest.mark.parametrize("scale", [1e-100, 1e100])
def test_every_ratio_is_free_of_the_scale(scale):
    gram = gram_of([1.0, 0.2], [-1.0, 1.0])
    plain, scaled = (conflict_metrics(g, ["a", "b"]) for g in (gram, gram * scale))
    for name in plain:
        factor = math.sqrt(scale) if "norm/" in name else 1
        assert scaled[name] == pytest.approx(plain[name] * factor, rel=1e-9), name


def test_a_matrix_of_the_wrong_size_is_named():
    with pytest.raises(ValueError, match=r"\(2, 2\), but there are 3 tasks"):
        conflict_metrics(torch.eye(2), ["a", "b", "c"])


def rotated(gram):
    """The same matrix with other pairs in conflict."""
    return gram * torch.tensor([[1.0, -1, 1], [-1, 1, -1], [1, -1, 1]]).double()


def test_agreement_of_a_matrix_with_itself_and_with_its_opposite():
    gram = gram_of([1.0, 0.0, 0.2], [0.5, 1.0, 0.0], [-1.0, 0.3, 2.0])
    same = agreement_metrics(gram, 7 * gram, ["a", "b", "c"], (torch.ones(3).double(), torch.ones(3).double() * 2))
    assert same["audit/cos_correlation"] == pytest.approx(1) and same["audit/update_cosine"] == pytest.approx(1)
    assert same["audit/sign_agreement"] == 1 and same["audit/cos_error"] == pytest.approx(0, abs=1e-12)
    other = agreement_metrics(gram, rotated(gram), ["a", "b", "c"])
    cos = cosines(gram)
    assert other["audit/cos/a~b"] == pytest.approx(-cos[0, 1].item())
    assert other["audit/sign_agreement"] == pytest.approx(1 / 3)
    assert other["audit/cos_error"] == pytest.approx(2 / 3 * (abs(cos[0, 1]) + abs(cos[1, 2])).item())
    assert "audit/update_cosine" not in other


def test_the_cosine_between_two_updates_is_that_of_the_vectors():
    rows = torch.tensor([[1.0, 0.0, 2.0], [0.5, -1.0, 0.0]]).double()
    a, b = torch.tensor([1.0, 3.0]).double(), torch.tensor([2.0, -1.0]).double()
    found = agreement_metrics(torch.eye(2), rows @ rows.T, ["a", "b"], (a, b))["audit/update_cosine"]
    assert found == pytest.approx(torch.cosine_similarity(a @ rows, b @ rows, dim=0).item())


def test_nothing_agrees_on_a_zero_gradient():
    assert agreement_metrics(torch.zeros(2, 2), torch.eye(2), ["a", "b"]) == {}


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_gradient_that_is_not_finite_has_norms_and_no_more(value):
    gram = torch.eye(3, dtype=torch.float64)
    gram[0, 0] = value
    metrics = conflict_metrics(gram, ["a", "b", "c"])
    assert metrics["conflict/norm/b"] == 1 and "conflict/stationarity" not in metrics
    assert metrics["conflict/cos_mean"] == 0 and "conflict/cos/a~b" not in metrics  # of the pair b~c alone


PAIRS = {"parallel": [1.0, 0.0], "orthogonal": [0.0, 1.0], "opposed": [-1.0, 0.0]}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("norm", [1.0, 1e-5])
def test_the_described_values_are_those_of_the_metrics(name, norm):
    metrics = conflict_metrics(norm**2 * gram_of([1.0, 0.0], PAIRS[name]), ["a", "b"])
    for metric, value in metrics.items():
        said = getattr(describe(metric), name)
        assert said is None if "norm/" in metric else value == pytest.approx(said, abs=1e-4), metric


@pytest.mark.parametrize("count", [2, 3, 7])
def test_the_values_of_orthogonal_gradients_are_those_of_as_many(count):
    tasks = [f"t{i}" for i in range(count)]
    for metric, value in conflict_metrics(4 * torch.eye(count, dtype=torch.float64), tasks).items():
        said = of_orthogonal(metric, count)
        assert said is None if "norm/" in metric else value == pytest.approx(said, abs=1e-4), metric


def test_every_metric_is_described_and_nothing_else():
    gram = gram_of([1.0, 0.0, 0.2], [0.5, 1.0, 0.0], [-1.0, 0.3, 2.0])
    ones = torch.ones(3, dtype=torch.float64)
    found = conflict_metrics(gram, "abc") | agreement_metrics(gram, gram.flip(0, 1), "abc", (ones, ones))
    for kind in AFFINITIES:
        found |= named_affinity(gram, "abc", kind)
    assert {name for name in found if describe(name) is None} == set()
    used = {name if name in DESCRIPTIONS else name.rpartition("/")[0] + "/" for name in found}
    assert used == set(DESCRIPTIONS) and describe("loss/a") is None


@pytest.mark.parametrize("shape", PAIRS)
def test_three_gradients_in_closed_form(shape):
    third = {"parallel": [1.0, 0, 0], "orthogonal": [0, 0, 1.0], "opposed": [0, 0, 0.0]}[shape]
    metrics = conflict_metrics(gram_of([1.0, 0, 0], [*PAIRS[shape], 0], third), ["a", "b", "c"])
    expected = {"parallel": (1, 0, 0), "orthogonal": (3**-0.5, 1 - 3**-0.5, 0), "opposed": (0, 1, 1)}[shape]
    names = ("stationarity", "cancellation", "fraction")
    assert [metrics[f"conflict/{name}"] for name in names] == pytest.approx(expected, abs=1e-7)


def test_a_cosine_within_the_tolerance_is_no_conflict():
    angles = [math.acos(c) for c in (-0.0003, -0.04, -0.06)]
    for angle, fraction in zip(angles, (0, 0, 1), strict=True):
        gram = gram_of([1.0, 0.0], [math.cos(angle), math.sin(angle)])
        assert conflict_metrics(gram, ["a", "b"])["conflict/fraction"] == fraction
        assert conflict_metrics(gram, ["a", "b"], tolerance=0)["conflict/fraction"] == 1  # negative control
    random = torch.randn(40, 20_000, generator=torch.Generator().manual_seed(0))
    tasks = [str(i) for i in range(40)]
    assert conflict_metrics(random @ random.T, tasks)["conflict/fraction"] == 0
    assert conflict_metrics(random @ random.T, tasks, tolerance=0)["conflict/fraction"] > 0.4


def test_signs_of_noise_are_not_counted_as_agreement_nor_as_disagreement():
    def gram(*cosines):
        a, b, c = cosines
        return torch.tensor([[1, a, b], [a, 1, c], [b, c, 1]]).double()

    here, there = gram(0.3, -0.001, 0.4), gram(0.2, 0.001, -0.5)
    assert agreement_metrics(here, there, "abc")["audit/sign_agreement"] == 0.5
    assert agreement_metrics(here, there, "abc", tolerance=0)["audit/sign_agreement"] == pytest.approx(1 / 3)
    assert "audit/sign_agreement" not in agreement_metrics(gram(0.01, 0, 0), gram(0.01, 0, 0), "abc")


def test_a_small_gradient_is_near_stationary_without_any_conflict():
    metrics = conflict_metrics(gram_of([1.0, 0.0], [0.01, 0.0]), ["a", "b"])
    assert metrics["conflict/stationarity"] == pytest.approx(0.01 / 0.505)  # min(n) / mean(n), as the docstring says
    assert metrics["conflict/cancellation"] == pytest.approx(0, abs=1e-7)
