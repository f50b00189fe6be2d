"""Task affinity from a Gram matrix against its definition, on a model whose losses are known in closed form."""

import pytest
import torch

from mtl.affinity import first_order_affinity, named_affinity


def quadratic(tasks=3, size=5, seed=0):
    """Losses L_j(θ) = |A_j θ - b_j|² / 2, at a θ; their gradients are known, and so is what a step does to them."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(tasks, size, size, generator=generator, dtype=torch.float64)
    at, goals = (torch.randn(*shape, size, generator=generator, dtype=torch.float64) for shape in ((), (tasks,)))
    residuals = torch.einsum("jab,b->ja", maps, at) - goals
    gradients = torch.einsum("jab,ja->jb", maps, residuals)

    def losses(theta):
        return (torch.einsum("jab,b->ja", maps, theta) - goals).square().sum(1) / 2

    return maps, at, gradients, losses


def steps(at, gradients, losses, lr):
    return torch.stack([1 - losses(at - lr * g) / losses(at) for g in gradients])


def test_a_quadratic_loss_falls_by_the_estimate_less_its_second_order():
    """L_j(θ - lr g) = L_j - lr <g, g_j> + lr² |A_j g|² / 2, exactly."""
    maps, at, gradients, losses = quadratic()
    lr = 0.01
    estimate = first_order_affinity(gradients @ gradients.T, losses(at), lr)
    curvature = torch.einsum("jab,ib->ija", maps, gradients).square().sum(2) / 2 / losses(at)
    expected = steps(at, gradients, losses, lr)
    torch.testing.assert_close(estimate - lr**2 * curvature, expected, rtol=1e-10, atol=1e-14)
    assert (estimate - lr**2 * curvature - expected.T).abs().max() > 1e-3  # negative control: it is not symmetric


def test_it_converges_to_the_step_at_first_order():
    """The relative error falls by ten with the learning rate."""
    _, at, gradients, losses = quadratic(seed=1)
    errors = []
    for lr in (1e-3, 1e-4, 1e-5):
        found = first_order_affinity(gradients @ gradients.T, losses(at), lr)
        errors.append(((found - steps(at, gradients, losses, lr)).abs() / lr).max().item())
    assert errors[0] > 0 and errors[0] / errors[1] == pytest.approx(10, rel=1e-2)
    assert errors[1] / errors[2] == pytest.approx(10, rel=1e-2)


def test_the_weights_of_the_losses_are_divided_out():
    _, at, gradients, losses = quadratic()
    weights = torch.tensor([0.5, 3.0, 20.0], dtype=torch.float64)
    weighted = weights[:, None] * gradients
    plain = first_order_affinity(gradients @ gradients.T, losses(at), 0.1)
    found = first_order_affinity(weighted @ weighted.T, losses(at), 0.1, weights)
    torch.testing.assert_close(found, plain, rtol=1e-12, atol=0)
    assert not torch.allclose(first_order_affinity(weighted @ weighted.T, losses(at), 0.1), plain)


@pytest.mark.parametrize(
    "case", ["a loss of 0", "a negative loss", "a weight of 0", "a Gram matrix that is not finite"]
)
def test_what_has_no_meaning_is_left_out(case):
    gram, losses, weights = torch.ones(2, 2), torch.ones(2), torch.ones(2)
    kept = {"affinity/a→a", "affinity/b→a"}
    if "loss" in case:
        losses[1] = 0.0 if case == "a loss of 0" else -1.0
    elif "weight" in case:
        weights[1], kept = 0.0, {"affinity/a→a"}
    else:
        gram[1, :] = torch.inf
        kept = {"affinity/a→a", "affinity/a→b"}
    assert set(named_affinity(first_order_affinity(gram, losses, 0.1, weights), ["a", "b"])) == kept


def test_names_tell_the_step_from_the_loss():
    gram, losses = torch.tensor([[4.0, 2.0], [2.0, 9.0]]), torch.tensor([1.0, 10.0])
    found = named_affinity(first_order_affinity(gram, losses, 0.1), ["a", "b"], "lookahead")
    expected = {"a→a": 0.4, "a→b": 0.02, "b→a": 0.2, "b→b": 0.09}
    assert found == pytest.approx({f"affinity/lookahead/{pair}": z for pair, z in expected.items()})
