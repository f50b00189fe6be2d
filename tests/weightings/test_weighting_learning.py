"""Weightings that learn: closed forms, an independent implementation of a step, a toy problem."""

import math

import pytest
import torch
from support.weighting_zoo import TASKS, scalars

from mtl.weightings import FAMO, IMTLL, UW, GradNorm, weight_of
from mtl.weightings.adam import Adam


@pytest.mark.parametrize(("build", "sign"), [(UW, 1), (IMTLL, -1)])
def test_the_learned_s_reaches_its_closed_form(build, sign):
    """e^s = L for uncertainty weighting, e^-s = L for IMTL-L; every loss is then scaled to the same number."""
    weighting = build(TASKS)
    losses = scalars(TASKS, [0.02, 1.0, 30.0])
    optimizer = torch.optim.Adam(weighting.parameters(), lr=0.05)
    for _ in range(1000):
        optimizer.zero_grad()
        weights = [weight_of(weighting, task, loss).item() for task, loss in losses.items()]
        optimizer.step()
    learned = [parameter.item() for parameter in weighting.parameters()]
    assert learned == pytest.approx([sign * math.log(loss.item()) for loss in losses.values()], abs=1e-3)
    scaled = [weight * loss.item() for weight, loss in zip(weights, losses.values(), strict=True)]
    assert scaled == pytest.approx([0.5 if build is UW else 1] * 3, rel=1e-3)


@pytest.mark.parametrize("build", [UW, IMTLL])
def test_the_optimizer_decays_what_it_is_asked_to(build):
    """As documented: with weight decay, s does not reach its closed form."""
    weighting = build(["a"])
    optimizer = torch.optim.SGD(weighting.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(500):
        optimizer.zero_grad()
        weight_of(weighting, "a", torch.tensor(30.0))
        optimizer.step()
    assert abs(next(weighting.parameters()).item()) < 0.9 * math.log(30)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adam_is_that_of_torch(decay):
    generator = torch.Generator().manual_seed(0)
    ours, theirs = torch.zeros(4), torch.zeros(4, requires_grad=True)
    adam, reference = Adam(4, 0.03, decay), torch.optim.Adam([theirs], lr=0.03, weight_decay=decay)
    for _ in range(50):
        gradient = torch.randn(4, generator=generator) * torch.tensor([1.0, 1e-4, 1e4, 0.0])
        adam.step(ours, gradient, torch.ones(4, dtype=torch.bool))
        theirs.grad = gradient.clone()
        reference.step()
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-7)


def test_adam_steps_each_entry_as_if_it_were_alone():
    generator = torch.Generator().manual_seed(0)
    both, alone = torch.zeros(2), torch.zeros(1)
    adam, single = Adam(2, 0.03, 0.1), Adam(1, 0.03, 0.1)
    for step in range(30):
        gradient = torch.randn(2, generator=generator)
        moving = torch.tensor([True, step % 3 == 1])
        held = both[1].clone()
        adam.step(both, torch.where(moving, gradient, torch.nan), moving)
        if moving[1]:
            single.step(alone, gradient[1:], moving[1:])
        else:
            assert both[1] == held
    assert both[1] == alone[0] != 0 and both.isfinite().all()


def famo_by_the_paper(steps, lr, gamma):
    """Algorithm 1 over all tasks, with the Jacobian of the softmax written out and torch's Adam."""
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=lr, weight_decay=gamma)
    for before, after in steps:
        delta = torch.tensor(before).double().log() - torch.tensor(after).double().log()
        z = logits.detach().softmax(0)
        logits.grad = (torch.diag(z) - torch.outer(z, z)).T @ delta
        optimizer.step()
    return logits.detach()


def pairs_of_losses(count):
    draws = 0.1 + torch.rand(count, 2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return draws.tolist()


def learn(famo, steps):
    for before, after in steps:
        famo.observe(scalars(TASKS, before), None)
        famo.observe_after_update(scalars(TASKS, after))
    return famo.logits.double()


@pytest.mark.parametrize("gamma", [0.0, 1e-3, 0.5])
def test_famo_learns_as_the_paper_says(gamma):
    steps = pairs_of_losses(40)
    expected = famo_by_the_paper(steps, 0.025, gamma)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(learn(FAMO(TASKS, gamma=gamma), steps), expected, rtol=1e-4, atol=1e-6)


def test_famo_would_notice_the_wrong_order_or_another_decay():
    """Negative control."""
    steps = pairs_of_losses(40)
    right = famo_by_the_paper(steps, 0.025, 1e-3)
    assert not torch.allclose(learn(FAMO(TASKS), [(after, before) for before, after in steps]), right, atol=1e-2)
    assert not torch.allclose(learn(FAMO(TASKS, gamma=0.5), steps), right, atol=1e-2)


def test_famo_raises_the_weight_of_the_loss_that_falls_least():
    famo = FAMO(TASKS)
    for _ in range(20):
        famo.observe(scalars(TASKS, [1.0, 1.0, 100.0]), None)
        famo.observe_after_update(scalars(TASKS, [0.5, 0.99, 80.0]))  # by factors of 0.5, 0.99 and 0.8
    a, b, c = famo.logits.tolist()
    assert b > c > a


def test_famo_learns_from_the_distance_to_the_least_loss():
    plain, shifted = FAMO(TASKS), FAMO(TASKS, min_losses={"b": -5.0})
    for before, after in pairs_of_losses(10):
        plain.observe(scalars(TASKS, before), None)
        plain.observe_after_update(scalars(TASKS, after))
        shifted.observe(scalars(TASKS, [before[0], before[1] - 5, before[2]]), None)
        shifted.observe_after_update(scalars(TASKS, [after[0], after[1] - 5, after[2]]))
    torch.testing.assert_close(shifted.logits, plain.logits, rtol=1e-4, atol=1e-5)


def test_famo_with_a_task_left_out_is_the_paper_over_the_others():
    steps = pairs_of_losses(12)
    three, two = FAMO(TASKS), FAMO(["a", "c"])
    for before, after in steps:
        pair = scalars(TASKS, before), scalars(TASKS, after)
        del pair[0]["b"], pair[1]["b"]
        for famo in (three, two):
            famo.observe(pair[0], None)
            famo.observe_after_update(pair[1])
    assert three.logits[1] == 0
    torch.testing.assert_close(three.logits[[0, 2]], two.logits)


def gradnorm_step(gradnorm, losses, norms):
    weights = [weight_of(gradnorm, t, torch.tensor(x)).item() for t, x in zip(TASKS, losses, strict=True)]
    rows = torch.tensor([w * n for w, n in zip(weights, norms, strict=True)]).double()
    # rows that are not orthogonal: only the diagonal may matter
    gradnorm.observe(scalars(TASKS, losses), torch.outer(rows, rows))
    return weights


def gradnorm_by_autograd(steps, alpha, lr):
    """Equations 1 and 2 by autograd and torch's Adam, in float64, with the paper's rescaling to the sum K."""
    weights = torch.ones(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([weights], lr=lr)
    first = torch.tensor(steps[0][0]).double()
    for losses, norms in steps:
        ratio = torch.tensor(losses).double() / first
        rate = ratio / ratio.mean()
        scaled = weights * torch.tensor(norms).double()
        target = (scaled.mean() * rate**alpha).detach()
        optimizer.zero_grad()
        (scaled - target).abs().sum().backward()
        optimizer.step()
        with torch.no_grad():
            weights.mul_(3 / weights.sum())
    return weights.detach()


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.5])
def test_gradnorm_is_the_papers_equation(alpha):
    steps = pairs_of_losses(25)
    gradnorm = GradNorm(TASKS, alpha=alpha)
    for losses, norms in steps:
        gradnorm_step(gradnorm, losses, norms)
    expected = gradnorm_by_autograd(steps, alpha, 0.025)
    assert (expected - 1).abs().max() > 0.05
    torch.testing.assert_close(gradnorm.current.double(), expected, rtol=1e-4, atol=1e-5)
    other = gradnorm_by_autograd(steps, alpha + 0.7, 0.025)  # negative control
    assert not torch.allclose(gradnorm.current.double(), other, atol=1e-2)


def norms_at_the_end(gradnorm, steps=400):
    """Shared features that three tasks pull to different points, with very different force."""
    generator = torch.Generator().manual_seed(0)
    places, forces = torch.randn(3, 5, generator=generator), [0.3, 1.0, 5.0]
    theta = torch.zeros(5, requires_grad=True)
    for _ in range(steps):
        losses = {t: f * (theta - x).square().sum() for t, f, x in zip(TASKS, forces, places, strict=True)}
        weights = {t: weight_of(gradnorm, t, loss) for t, loss in losses.items()}
        rows = torch.stack([torch.autograd.grad(weights[t] * loss, theta)[0] for t, loss in losses.items()]).double()
        gradnorm.observe({t: loss.detach() for t, loss in losses.items()}, rows @ rows.T)
        with torch.no_grad():
            theta -= 0.02 * rows.sum(0)
    return rows.norm(dim=1)


def test_gradnorm_equalises_the_norms():
    norms = norms_at_the_end(GradNorm(TASKS, alpha=0.0))
    assert norms.max() / norms.min() < 1.1
    frozen = norms_at_the_end(GradNorm(TASKS, alpha=0.0, lr=1e-9))  # negative control: equal weights
    assert frozen.max() / frozen.min() > 2


def test_gradnorm_pulls_up_the_task_that_trains_slowly():
    ends = {}
    for alpha in (0.0, 1.5):
        gradnorm = GradNorm(TASKS, alpha=alpha)
        gradnorm_step(gradnorm, [1.0, 10.0, 5.0], [1.0] * 3)
        for _ in range(300):
            gradnorm_step(gradnorm, [0.9, 1.0, 2.5], [1.0] * 3)  # 0.9, 0.1 and 0.5 of the first losses
        ends[alpha] = gradnorm.current.tolist()
    assert ends[0.0] == pytest.approx([1] * 3, abs=0.1)
    a, b, c = ends[1.5]
    assert a > c > b


def test_gradnorm_shares_out_what_absent_tasks_leave():
    gradnorm = GradNorm(TASKS)
    for losses, norms in pairs_of_losses(10):
        gradnorm_step(gradnorm, losses, norms)
    kept = gradnorm.current[1].item()
    for _ in range(5):
        gradnorm.observe(scalars(["c", "a"], [0.5, 0.2]), torch.diag(torch.tensor([4.0, 1.0]).double()))
    assert gradnorm.current[1].item() == kept
    assert gradnorm.current.sum().item() == pytest.approx(3, rel=1e-6)


def test_gradnorm_reads_the_gram_matrix_in_the_order_of_the_losses():
    ends = []
    for order in (["a", "c"], ["c", "a"]):
        gradnorm = GradNorm(TASKS)
        squares = {"a": 1.0, "c": 9.0}
        gradnorm.observe(
            scalars(order, [1.0, 1.0]), torch.diag(torch.tensor([squares[task] for task in order]).double())
        )
        ends.append(gradnorm.current.tolist())
    assert ends[0] == ends[1] and ends[0][0] > ends[0][2]


@pytest.mark.parametrize(
    ("losses", "norms"),
    [
        ([1.0, 0.0, 2.0], [1.0, 1.0, 1.0]),
        ([0.0, 0.0, 0.0], [1.0, 2.0, 3.0]),
        ([-1.0, 2.0, 1.0], [1.0, 2.0, 3.0]),
        ([1.0, 1.0, 1.0], [0.0, 1.0, 1.0]),
        ([1.0, 1.0, 1.0], [0.0, 0.0, 0.0]),
        ([1.0, 1.0, 1.0], [1e-6, 1.0, 1e6]),
    ],
)
def test_gradnorm_keeps_its_weights_positive_and_finite(losses, norms):
    gradnorm = GradNorm(TASKS, lr=0.1)
    for _ in range(100):
        weights = gradnorm_step(gradnorm, losses, norms)
        assert all(0 < weight <= 3 for weight in weights) and sum(weights) == pytest.approx(3, rel=1e-5)


def test_gradnorm_takes_a_loss_that_has_become_negative_as_zero():
    ends = []
    for loss in (0.0, -0.5):
        gradnorm = GradNorm(TASKS)
        gradnorm_step(gradnorm, [1.0, 1.0, 1.0], [1.0, 2.0, 3.0])
        for _ in range(5):
            gradnorm_step(gradnorm, [loss, 0.5, 0.5], [1.0, 2.0, 3.0])
        ends.append(gradnorm.current.tolist())
    assert ends[0] == ends[1] and all(0 < weight < 3 for weight in ends[0])
