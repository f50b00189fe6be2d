"""Fernando et al. 2023, algorithm 1, two steps by hand with beta = 1/2 and gamma = 0.1 throughout."""

import pytest
import torch

from mtl.rules import MoCo


def test_averages_and_weights():
    rule = MoCo(num_tasks=2, beta=0.5, beta_sigma=0, gamma=0.1, gamma_sigma=0)
    rows = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    _, weights = rule.combine([rows], rows @ rows.T)
    # y = g; w = P((0.5, 0.5) - 0.1 diag(1, 4) (0.5, 0.5)) = P(0.45, 0.3).
    assert weights.tolist() == pytest.approx([0.575, 0.425])
    rows = torch.tensor([[3.0, 0.0], [0.0, 0.0]])
    (direction,), weights = rule.combine([rows], rows @ rows.T)
    # y = (2, 0), (0, 1); w = P((0.575, 0.425) - 0.1 diag(4, 1) (0.575, 0.425)) = P(0.345, 0.3825).
    assert weights.tolist() == pytest.approx([0.48125, 0.51875])
    assert direction.tolist() == pytest.approx([2 * 0.48125, 0.51875])
