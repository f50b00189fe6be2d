"""EPO against its linear program solved by enumeration, and on a front that is known."""

import itertools

import numpy as np
import pytest
import torch
from support.rule_zoo import rows_of

from mtl.rules import EPO, SolverError

P = np.array([2.0, 1.0, 0.5])
ROWS = rows_of(3, 5, seed=2)
GRAM = ROWS @ ROWS.T


def vertices(left, right):
    """The vertices of {w >= 0, sum w = 1, left w >= right}: every choice of K - 1 tight inequalities."""
    count = left.shape[1]
    rows, bounds = np.vstack([np.eye(count), left]), np.concatenate([np.zeros(count), right])
    for chosen in itertools.combinations(range(len(rows)), count - 1):
        system = np.vstack([np.ones(count), rows[list(chosen)]])
        if abs(np.linalg.det(system)) < 1e-12:
            continue
        w = np.linalg.solve(system, np.concatenate([[1.0], bounds[list(chosen)]]))
        if (rows @ w >= bounds - 1e-9).all():
            yield w


def by_enumeration(gram, losses, preference, epsilon=1e-4):
    """The paper's program, from its text: w, and the best value of its objective."""
    preference = preference / preference.mean()
    scaled = preference * losses
    shares = scaled / scaled.sum()
    logs = np.log(len(losses) * shares)
    mu = shares @ logs
    towards = gram @ (preference * (logs - mu))
    if mu > epsilon:
        bounds = np.where(towards > 0, -np.inf, towards) if (towards > 0).any() else np.zeros(len(losses))
        bounds[scaled.argmax()] = 0
        finite = np.isfinite(bounds)
        aim, left, right = towards, gram[finite], bounds[finite]
    else:
        aim = gram.sum(0)
        left, right = np.vstack([gram, towards]), np.append(np.zeros(len(losses)), min(0.0, towards.max()))
    return max(vertices(left, right), key=lambda w: aim @ w), aim


@pytest.mark.parametrize("seed", range(6))
def test_the_linear_program_far_from_the_ray(seed):
    rows = rows_of(3, 5, seed=seed)
    losses = torch.rand(3, generator=torch.Generator().manual_seed(seed)).double() + 0.1
    weights = EPO(3, P.tolist())(rows @ rows.T, losses)
    best, aim = by_enumeration((rows @ rows.T).numpy(), losses.numpy(), P)
    assert aim @ weights.numpy() == pytest.approx(aim @ best, rel=1e-8)
    torch.testing.assert_close(weights, torch.from_numpy(best), rtol=1e-7, atol=1e-9)
    other, _ = by_enumeration((rows @ rows.T).numpy(), losses.numpy(), P[::-1])
    assert not np.allclose(weights.numpy(), other, atol=1e-3)


@pytest.mark.parametrize("seed", range(4))
def test_the_linear_program_on_the_ray(seed):
    rows = rows_of(3, 5, seed=seed)
    losses = torch.from_numpy(1 / P)
    weights = EPO(3, P.tolist())(rows @ rows.T, losses)
    best, aim = by_enumeration((rows @ rows.T).numpy(), losses.numpy(), P)
    assert aim @ weights.numpy() == pytest.approx(aim @ best, rel=1e-8)


@pytest.mark.parametrize("preference", [[1.0, 1.0], [3.0, 1.0], [1.0, 8.0]])
def test_it_ends_on_the_front_where_preference_times_loss_is_even(preference):
    """Two losses 1 - exp(-|x -+ 1/sqrt(n)|^2), the front of Fonseca & Fleming 1995 on which the paper tries it."""
    count, target = 8, torch.full((8,), 8**-0.5).double()
    x = torch.full((count,), 0.3).double()
    rule = EPO(2, preference)
    for _ in range(400):
        point = x.clone().requires_grad_()
        losses = torch.stack([1 - torch.exp(-((point - t) ** 2).sum()) for t in (target, -target)])
        rows = torch.stack([torch.autograd.grad(loss, point, retain_graph=True)[0] for loss in losses])
        x = x - 0.05 * (rule(rows @ rows.T, losses) @ rows)
    a, b = (preference[i] * losses[i].item() for i in range(2))
    assert a == pytest.approx(b, rel=0.03)
    assert torch.allclose(x, x.mean().expand(count), atol=1e-6) and x.abs().max() <= target[0]  # on the front


def test_absent_tasks_and_zero_gradients():
    losses = torch.tensor([1.0, 2.0]).double()
    present = [2, 0]
    gram = GRAM[present][:, present]
    expected = EPO(2, [0.5, 2.0])(gram, losses)
    assert torch.equal(EPO(3, P.tolist())(gram, losses, present=present), expected)
    assert EPO(2)(torch.zeros(2, 2), losses).tolist() == [0.5, 0.5]
    padded = torch.zeros(3, 3).double()
    padded[:2, :2] = gram
    weights = EPO(3)(padded, torch.tensor([1.0, 2.0, 3.0]))
    assert weights[2] == 0 and weights.sum().item() == pytest.approx(1)


def test_losses_that_it_is_not_made_for():
    assert EPO(2)(torch.eye(2), torch.zeros(2)).isfinite().all()
    for losses in ([-1.0, 1.0], [float("nan"), 1.0]):
        with pytest.raises(SolverError, match="needs finite losses of 0 or more"):
            EPO(2)(torch.eye(2), torch.tensor(losses))
    with pytest.raises(ValueError, match="has 2 tasks, but there are 3 losses"):
        EPO(2)(torch.eye(2), torch.ones(3))
    assert EPO(2)(torch.full((2, 2), torch.inf), torch.ones(2)).isnan().all()
