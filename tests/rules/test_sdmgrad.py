"""Xiao et al. 2023, algorithm 1, one and two inner iterations by hand, with lambda = 1 and the step 0.1."""

import pytest
import torch

from mtl.rules import SDMGrad

GRAM = torch.tensor([[1.0, 0.0], [0.0, 9.0]])  # norms 1 and 3; in units of their mean G = diag(1, 9) / 4


# One: w = P((0.5, 0.5) - 0.1 G (1, 1)) = P(0.475, 0.275) = (0.6, 0.4).
# Two: velocity = 0.5 (0.25, 2.25) + G (1.1, 0.9) = (0.4, 3.15); w = P(0.56, 0.085) = (0.7375, 0.2625).
@pytest.mark.parametrize(("iterations", "simplex"), [(1, [0.6, 0.4]), (2, [0.7375, 0.2625])])
def test_projected_gradient_descent_with_momentum(iterations, simplex):
    rule = SDMGrad(num_tasks=2, lamda=1.0, lr=0.1, momentum=0.5, iterations=iterations)
    assert rule(GRAM).tolist() == pytest.approx([(weight + 0.5) / 2 for weight in simplex])  # (w + lambda / K) / 2
    assert rule.weights.tolist() == pytest.approx(simplex)
