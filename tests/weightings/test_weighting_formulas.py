"""Weights against autograd of the scalar that each paper minimises, and weights of awkward losses."""

import math
from itertools import product

import pytest
import torch
from support.weighting_zoo import BUILD, TASKS, scalars

from mtl.weightings import (
    COSMOS,
    DWA,
    FAMO,
    GLS,
    IMTLL,
    PBI,
    STCH,
    UW,
    UWSO,
    GO4Align,
    Log,
    Random,
    Tchebycheff,
    weight_of,
)
from mtl.weightings.go4align import means_of_clusters

LOSSES = [0.03, 1.7, 240.0]
PREFERENCE = {"a": 2.0, "c": 0.5}  # 1 for b
SHARES = torch.tensor([2.0, 1.0, 0.5]).double() / 3.5


def derivatives(objective, values):
    leaves = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    objective(leaves).backward()
    return leaves.grad


def late_weights(weighting, values, tasks=TASKS):
    return torch.stack(list(weighting.weights(scalars(tasks, values, torch.float64)).values())).double()


def early_weights(weighting, values):
    return torch.stack([weight_of(weighting, t, x) for t, x in scalars(TASKS, values, torch.float64).items()]).double()


def warmed_up(mu=1.0, nadir=(0.5, 2.0, 100.0), **options):
    """An STCH after a warm-up of one epoch of two steps, with this nadir."""
    stch = STCH(TASKS, steps_per_epoch=2, mu=mu, warmup_epochs=1, **options)
    for factor in (0.5, 1.5):
        stch.observe(scalars(TASKS, [factor * n for n in nadir]), None)
    return stch


def test_the_geometric_mean():
    expected = derivatives(lambda L: L.prod() ** (1 / 3), LOSSES)
    torch.testing.assert_close(late_weights(GLS(), LOSSES), expected, rtol=1e-6, atol=0)
    # what LibMTL reports instead
    wrong = torch.tensor(LOSSES).double() / (3 * torch.tensor(LOSSES).double().prod())
    assert not torch.allclose(wrong, expected, rtol=0.1)


@pytest.mark.parametrize("loss", [1e-3, 1e3])
def test_the_geometric_mean_of_many_losses_neither_under_nor_overflows(loss):
    tasks = [f"task{i}" for i in range(100)]
    assert torch.tensor(loss).pow(100).item() in (0, math.inf)  # what the plain product does
    weights = GLS().weights(scalars(tasks, [loss] * 100))
    torch.testing.assert_close(torch.stack(list(weights.values())), torch.full((100,), 0.01))


def famo_with(logits, **arguments):
    famo = FAMO(TASKS, **arguments)
    famo.logits.copy_(torch.tensor(logits))
    return famo


@pytest.mark.parametrize("min_losses", [None, {"a": -2.0, "c": 200.0}])
def test_famo(min_losses):
    logits = [0.3, -1.2, 0.7]
    z = torch.tensor(logits).double().softmax(0)
    bounds = torch.tensor([(min_losses or {}).get(task, 0.0) for task in TASKS]).double()

    def objective(L):
        D = L - bounds + 1e-8
        return (z * D.log()).sum() / (z / D).sum().detach()

    weights = late_weights(famo_with(logits, min_losses=min_losses), LOSSES)
    torch.testing.assert_close(weights, derivatives(objective, LOSSES), rtol=1e-6, atol=0)
    assert weights.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("mu", [0.1, 1.0, 10.0])
def test_stch_after_warm_up(mu):
    nadir = torch.tensor([0.5, 2.0, 100.0]).double()
    expected = derivatives(lambda L: 3 * mu * torch.logsumexp((L / nadir).log() / mu, 0), LOSSES)
    weights = late_weights(warmed_up(mu), LOSSES)
    torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-12)
    assert (weights * torch.tensor(LOSSES)).sum().item() == pytest.approx(3, rel=1e-5)


@pytest.mark.parametrize("mu", [0.1, 1.0])
@pytest.mark.parametrize("warm", [True, False], ids=["after warm-up", "without"])
def test_stch_of_a_preference(mu, warm):
    nadir = torch.tensor([0.5, 2.0, 100.0] if warm else [1.0] * 3).double()
    expected = derivatives(lambda L: 3 * mu * torch.logsumexp((SHARES * L / nadir).log() / mu, 0), LOSSES)
    for preference in (PREFERENCE, [4.0, 2.0, 1.0]):  # their ratios count
        options = {"mu": mu, "preference": preference}
        stch = warmed_up(**options) if warm else STCH(TASKS, steps_per_epoch=2, warmup_epochs=0, **options)
        torch.testing.assert_close(late_weights(stch, LOSSES), expected, rtol=1e-4, atol=1e-12)
    plain = warmed_up(mu) if warm else STCH(TASKS, steps_per_epoch=2, warmup_epochs=0, mu=mu)
    assert not torch.allclose(late_weights(plain, LOSSES), expected, rtol=0.1, atol=0)


def test_stch_of_a_preference_nears_tchebycheff_and_wants_the_task_with_it_lower():
    """Its weights are in proportion to those of the maximum; a factor of the logarithms would turn around below 1."""
    preference, losses = {"a": 2.0}, [0.3, 0.5, 0.4]  # 2 * 0.3 is the largest
    stch = STCH(TASKS, steps_per_epoch=2, mu=0.001, warmup_epochs=0, preference=preference)
    one, other = late_weights(stch, losses), late_weights(Tchebycheff(TASKS, preference), losses)
    torch.testing.assert_close(one / one.sum(), other / other.sum(), rtol=1e-6, atol=1e-12)
    assert late_weights(STCH(TASKS, 2, mu=0.001, warmup_epochs=0), losses).argmax() == 1


def test_stch_without_warm_up_keeps_the_unit_of_the_losses():
    stch = STCH(TASKS, steps_per_epoch=2, warmup_epochs=0)
    for _ in range(4):
        stch.observe(scalars(TASKS, LOSSES), None)
    assert stch.nadir.tolist() == [1, 1, 1]


def test_stch_in_warm_up_minimises_the_log_losses():
    stch = STCH(TASKS, steps_per_epoch=2, warmup_epochs=2)
    expected = derivatives(lambda L: L.log().sum(), LOSSES)
    for _ in range(4):
        torch.testing.assert_close(late_weights(stch, LOSSES), expected, rtol=1e-6, atol=0)
        stch.observe(scalars(TASKS, [1.0, 2.0, 3.0]), None)
    assert not torch.allclose(late_weights(stch, LOSSES), expected, rtol=0.1)


def test_stch_takes_its_nadir_from_the_last_epoch_of_warm_up():
    stch = STCH(TASKS, steps_per_epoch=2, warmup_epochs=2)
    for step in range(8):
        stch.observe(scalars(TASKS, [step, step, step]), None)
    assert stch.nadir.tolist() == [2.5] * 3


def test_stch_gives_a_late_task_its_own_warm_up():
    stch = STCH(TASKS, steps_per_epoch=2, warmup_epochs=1)
    for _ in range(2):
        stch.observe(scalars(["a", "b"], [0.5, 2.0]), None)
    two = STCH(["a", "b"], steps_per_epoch=2, warmup_epochs=1)
    for _ in range(2):
        two.observe(scalars(["a", "b"], [0.5, 2.0]), None)
    weights = late_weights(stch, LOSSES)
    torch.testing.assert_close(weights[:2], late_weights(two, LOSSES[:2], ["a", "b"]), rtol=0, atol=0)
    assert weights[2].item() == pytest.approx(1 / LOSSES[2])
    for _ in range(2):
        stch.observe(scalars(TASKS, [9.0, 9.0, 7.0]), None)
    assert stch.nadir.tolist() == [0.5, 2.0, 7.0]


@pytest.mark.parametrize("build", [GLS, lambda: famo_with([0.3, -1.2, 0.7]), warmed_up], ids=["gls", "famo", "stch"])
def test_an_absent_task_is_as_if_there_were_fewer(build):
    """Against the formulas over the two present tasks: K is the number of tasks in the batch."""
    two = scalars(["a", "c"], [LOSSES[0], LOSSES[2]], torch.float64)
    weights = torch.stack(list(build().weights(two).values())).double()
    objectives = {
        GLS: lambda L: L.prod().sqrt(),
        FAMO: lambda L: (torch.tensor([0.3, 0.7]).double().softmax(0) * L.log()).sum(),
        STCH: lambda L: 2 * torch.logsumexp((L / torch.tensor([0.5, 100.0])).log(), 0),
    }
    expected = derivatives(objectives[type(build())], [LOSSES[0], LOSSES[2]])
    if isinstance(build(), FAMO):
        expected = expected / expected.sum()
    torch.testing.assert_close(weights, expected, rtol=1e-5, atol=0)


def test_log():
    torch.testing.assert_close(
        early_weights(Log(), LOSSES), derivatives(lambda L: L.log().sum(), LOSSES), rtol=1e-6, atol=0
    )
    assert Log()("a", torch.tensor(2.0)).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("loss", [0.0, 1e-9, -3.0])
def test_a_loss_without_a_logarithm(loss):
    """Its own weight is zero, the others' weights are defined."""
    assert early_weights(Log(), [loss, 1.0, 2.0]).tolist() == pytest.approx([0, 1, 0.5])
    for weighting in (GLS(), warmed_up()):
        weights = late_weights(weighting, [loss, 1.0, 2.0])
        assert weights[0] == 0 and weights.isfinite().all() and (weights[1:] > 0).all()


@pytest.mark.parametrize("loss", [0.0, -3.0])
def test_famo_at_and_below_the_least_loss(loss):
    weights = late_weights(famo_with([0.0, 0.0, 0.0]), [loss, 1.0, 2.0])
    assert weights.isfinite().all()
    assert weights[0].item() == pytest.approx(1, abs=1e-6) and (weights[1:] > 0).all()


def test_uncertainty_and_imtl_l_at_a_given_s():
    s = 0.7
    uncertainty, imtl_l = UW(TASKS, initial=s), IMTLL(TASKS, initial=s)
    for task, loss in scalars(TASKS, LOSSES, torch.float64).items():
        assert uncertainty(task, loss).item() == pytest.approx(loss.item() / (2 * math.exp(s)) + s / 2, rel=1e-6)
        assert imtl_l(task, loss).item() == pytest.approx(math.exp(s) * loss.item() - s, rel=1e-6)
    assert early_weights(uncertainty, LOSSES).tolist() == pytest.approx([math.exp(-s) / 2] * 3)
    assert early_weights(imtl_l, LOSSES).tolist() == pytest.approx([math.exp(s)] * 3)


def test_random_weights_are_a_softmax_of_normal_draws():
    random = Random(["a", "b"], seed=0)
    logits = []
    for _ in range(4000):
        weights = random.current.double()
        assert weights.sum().item() == pytest.approx(1)
        logits.append((weights[0] / weights[1]).log())  # x_a - x_b, of variance 2
        random.observe({}, None)
    logits = torch.stack(logits) / math.sqrt(2)
    assert logits.mean().abs() < 0.06 and (logits.std() - 1).abs() < 0.05
    for quantile in (0.1, 0.25, 0.75, 0.9):
        normal = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(quantile)).item()
        assert logits.quantile(quantile).item() == pytest.approx(normal, abs=0.1)
    # negative control: uniform draws of the same mean and variance would be told apart
    uniform = (2 * torch.rand(4000, generator=torch.Generator().manual_seed(0)) - 1) * math.sqrt(3)
    assert abs(uniform.quantile(0.9).item() - 1.2816) > 0.1


def test_random_weights_have_their_own_seed():
    def draws(seed):
        random, seen = Random(TASKS, seed), []
        for _ in range(3):
            torch.rand(1)
            seen.append(early_weights(random, LOSSES).tolist())
            random.observe({}, None)
        return seen

    torch.manual_seed(0)
    first = draws(1)
    state = torch.get_rng_state()
    assert draws(1) == first and draws(2) != first
    assert first[0] != first[1] != first[2]
    torch.set_rng_state(state)
    before = torch.get_rng_state()
    Random(TASKS, 5).observe({}, None)
    assert torch.equal(before, torch.get_rng_state())


def test_random_weights_do_not_change_within_a_step_or_with_who_is_present():
    one, other = Random(TASKS, seed=1), Random(TASKS, seed=1)
    assert early_weights(one, LOSSES).tolist() == early_weights(one, LOSSES).tolist()
    one.observe(scalars(TASKS, LOSSES), None)
    other.observe(scalars(["b"], [1.0]), None)
    assert torch.equal(one.current, other.current)


def test_dwa_by_hand():
    dwa = DWA(["a", "b"], steps_per_epoch=2, temperature=2.0)
    epochs = [([4.0, 2.0], [1.0, 1.0]), ([2.0, 1.0], [3.0, 1.0]), ([1.0, 0.5], [1.0, 0.5])]
    for epoch, (a, b) in enumerate(epochs):
        for x, y in zip(a, b, strict=True):
            if epoch < 2:
                assert dwa.current.tolist() == [1, 1]
            dwa.observe(scalars(["a", "b"], [x, y]), None)
    # means: a 3, 1.5, 0.75 and b 1, 2, 0.75
    e = [math.exp(0.75 / 1.5 / 2), math.exp(0.75 / 2 / 2)]
    assert dwa.current.tolist() == pytest.approx([2 * e[0] / sum(e), 2 * e[1] / sum(e)])
    assert weight_of(dwa, "b", torch.tensor(5.0)).item() == dwa.current[1].item()


def test_dwa_after_two_epochs_by_hand():
    dwa = DWA(["a", "b"], steps_per_epoch=1, temperature=0.5)
    for losses in ([3.0, 1.0], [1.5, 2.0]):
        dwa.observe(scalars(["a", "b"], losses), None)
    e = [math.exp(0.5 / 0.5), math.exp(2.0 / 0.5)]
    assert dwa.current.tolist() == pytest.approx([2 * e[0] / sum(e), 2 * e[1] / sum(e)])


def test_dwa_of_absent_tasks():
    dwa = DWA(TASKS, steps_per_epoch=2)
    dwa.observe(scalars(TASKS, [2.0, 2.0, 0.0]), None)
    dwa.observe(scalars(["a"], [4.0]), None)  # b's mean is that of the one step that had it
    dwa.observe(scalars(["a", "c"], [1.0, 1.0]), None)
    dwa.observe({}, None)  # counts as a step of the epoch
    assert dwa.newer.tolist() == [1, 2, 1] and dwa.older[0] == 3
    # b has had one epoch, and c's older mean is 0: a ratio of one for both
    e = [math.exp(1 / 3 / 2), math.exp(0.5), math.exp(0.5)]
    assert dwa.current.tolist() == pytest.approx([3 * x / sum(e) for x in e])


@pytest.mark.parametrize("name", ["random", "dwa", "gradnorm"])
def test_what_the_weights_of_all_tasks_sum_to(name):
    from support.weighting_zoo import drive

    weighting = BUILD[name](TASKS)
    for step in range(10):
        weights = drive(weighting, None, step, absent=["b"] if step == 5 else ())
        if len(weights) == 3:
            assert sum(weights.values()) == pytest.approx(1 if name == "random" else 3, rel=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 20.0])
def test_the_softmax_of_inverse_losses(temperature):
    inverse = (1 / (temperature * torch.tensor(LOSSES).double())).exp()
    weights = late_weights(UWSO(temperature), LOSSES)
    torch.testing.assert_close(weights, inverse / inverse.sum(), rtol=1e-5, atol=0)
    assert late_weights(UWSO(1e9), LOSSES).tolist() == pytest.approx([1 / 3] * 3)
    assert late_weights(UWSO(), [0.0, 1.0, 1.0]).tolist() == pytest.approx([0, 0.5, 0.5])
    assert late_weights(UWSO(), [0.0, -1.0, 0.0]).tolist() == [0, 0, 0]


def best_clusters(values, count):
    """The means over the best of all partitions, intervals or not, by trying each assignment."""
    best = (math.inf, [])
    for groups in product(range(count), repeat=len(values)):
        members = [[v for v, g in zip(values, groups, strict=True) if g == own] for own in groups]
        means = [sum(own) / len(own) for own in members]
        best = min(best, (sum((v - m) ** 2 for v, m in zip(values, means, strict=True)), means))
    return best[1]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_the_clusters_are_the_best_of_all(count):
    generator = torch.Generator().manual_seed(count)
    for _ in range(4):
        values = torch.rand(5, generator=generator, dtype=torch.float64).log().exp2()
        found = means_of_clusters(values, torch.ones(5, dtype=torch.bool), count)
        assert found.tolist() == pytest.approx(best_clusters(values.tolist(), count), abs=1e-12)
        known = torch.tensor([True, False, True, True, True])
        some = means_of_clusters(values, known, count)
        assert some[known].tolist() == pytest.approx(best_clusters(values[known].tolist(), min(count, 4)), abs=1e-12)
        assert some[~known].tolist() == [0]
    same = means_of_clusters(torch.tensor([1.0, 3.0, 1.0, 1.0]), torch.ones(4, dtype=torch.bool), count)
    assert same.tolist() == pytest.approx([1.5] * 4 if count == 1 else [1, 3, 1, 1])
    assert means_of_clusters(values, torch.zeros(5, dtype=torch.bool), count).tolist() == [0] * 5


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_go4align_is_the_papers_equations_step_by_step(groups):
    tasks, beta, q = ["a", "b", "c", "d"], 0.3, [0.25] * 4
    go4align = GO4Align(tasks, groups=groups, beta=beta)
    for step in range(6):
        losses = (0.1 + 2 * torch.rand(4, generator=torch.Generator().manual_seed(step))).tolist()
        q = [own * math.exp(-beta * loss) for own, loss in zip(q, losses, strict=True)]
        q = [own / sum(q) for own in q]
        gamma = [own * sum(losses) / loss for own, loss in zip(q, losses, strict=True)]
        weights = late_weights(go4align, losses, tasks)
        assert weights.tolist() == pytest.approx(best_clusters(gamma, groups), rel=1e-5)
        go4align.observe(scalars(tasks, losses), None)
    assert max(q) > 1.5 * min(q), "the losses so far count"
    alone = late_weights(GO4Align(tasks, groups=9, beta=0), losses, tasks)
    assert (alone * torch.tensor(losses)).tolist() == pytest.approx([sum(losses) / 4] * 4, rel=1e-5)


def test_go4align_without_a_task_and_in_another_order():
    go4align, other = (GO4Align(tasks, groups=2, beta=0.3) for tasks in (TASKS, ["c", "a", "b"]))
    for step in range(5):
        losses = {task: torch.tensor(0.5 + (step + i) % 3) for i, task in enumerate(TASKS)}
        if step == 2:
            before = go4align.log_q.exp()
            del losses["b"]
        elif step > 2:
            assert go4align.log_q.exp().sum().item() == pytest.approx(1)
        ours = go4align.weights(losses)
        theirs = other.weights({task: losses[task] for task in ("c", "a", "b") if task in losses})
        assert ours == {task: pytest.approx(theirs[task].item(), rel=1e-5) for task in losses}
        for one in (go4align, other):
            one.observe(losses, None)
        if step == 2:
            assert go4align.log_q.exp()[1] == before[1] and not torch.equal(go4align.log_q.exp(), before)
    assert late_weights(go4align, [0.0, 1.0, 2.0])[0] == 0 and late_weights(go4align, [-1.0, 1.0, 2.0]).isfinite().all()


SCALARIZATIONS = {
    "tchebycheff": (
        lambda **own: Tchebycheff(TASKS, **own),
        lambda L, r: (r * L).max(),
    ),
    "pbi": (
        lambda **own: PBI(TASKS, theta=0.7, **own),
        lambda L, r: (L @ (1 / r)) / (1 / r).norm() + 0.7 * (L - (L @ (1 / r)) / (r**-2).sum() / r).norm(),
    ),
    "cosmos": (
        lambda **own: COSMOS(TASKS, lamda=0.3, **{k: v for k, v in own.items() if k == "preference"}),
        lambda L, r: r @ L - 0.3 * torch.nn.functional.cosine_similarity(r, L, dim=0),
    ),
}


@pytest.mark.parametrize("name", SCALARIZATIONS)
def test_a_scalarization_has_its_derivatives_as_weights(name):
    build, objective = SCALARIZATIONS[name]
    expected = derivatives(lambda L: objective(L, SHARES), LOSSES)
    torch.testing.assert_close(late_weights(build(preference=PREFERENCE), LOSSES), expected, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(late_weights(build(preference=[2.0, 1.0, 0.5]), LOSSES), expected, rtol=1e-6, atol=1e-12)
    plain = derivatives(lambda L: objective(L, torch.full((3,), 1 / 3).double()), LOSSES)
    torch.testing.assert_close(late_weights(build(), LOSSES), plain, rtol=1e-6, atol=1e-12)
    assert not torch.allclose(plain, expected)


@pytest.mark.parametrize("name", ["tchebycheff", "pbi"])
def test_a_scalarization_above_its_reference(name):
    build, objective = SCALARIZATIONS[name]
    reference = torch.tensor([0.0, 1.5, 0.0]).double()
    expected = derivatives(lambda L: objective(L - reference, SHARES), LOSSES)
    weights = late_weights(build(preference=PREFERENCE, reference={"b": 1.5}), LOSSES)
    torch.testing.assert_close(weights, expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", SCALARIZATIONS)
def test_a_scalarization_of_the_present_tasks(name):
    build, objective = SCALARIZATIONS[name]
    two = scalars(["a", "c"], [LOSSES[0], LOSSES[2]], torch.float64)
    weights = torch.stack(list(build(preference=PREFERENCE).weights(two).values())).double()
    shares = torch.tensor([2.0, 0.5]).double() / 2.5
    expected = derivatives(lambda L: objective(L, shares), [LOSSES[0], LOSSES[2]])
    torch.testing.assert_close(weights, expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("build", [lambda: Tchebycheff(TASKS, [1, 2, 4]), lambda: PBI(TASKS, preference=[1, 2, 4])])
def test_losses_on_the_preferred_ray(build):
    """Where preference times loss is the same for all tasks, neither has more to balance."""
    weights = late_weights(build(), [4.0, 2.0, 1.0])
    assert weights.isfinite().all() and (weights > 0).all()
    assert late_weights(build(), [0.0, 0.0, 0.0]).isfinite().all()
