"""Two gradients of cosine -0.6; the target t starts at 0 and follows by beta (Wang et al. 2021, algorithm 1)."""

import pytest
import torch

from mtl.rules import GradVac


def turned(rule, rows):
    """cos(h_1, g_2) with h_1 = g_1 + a g_2; the sum h_1 + h_2 gives g_2 the weight 1 + a."""
    weights = rule(rows @ rows.T)
    return torch.cosine_similarity(rows[0] + (weights[1] - 1) * rows[1], rows[1], dim=0).item()


def test_a_gradient_is_turned_until_its_cosine_is_the_running_average():
    rows = torch.tensor([[2.0, 0.0], [-3.0, 4.0]]).double()
    rule = GradVac(num_tasks=2, beta=0.5)
    # t = 0; then 0.5 * 0 + 0.5 * -0.6 = -0.3; then 0.5 * -0.3 + 0.5 * -0.6 = -0.45.
    assert [turned(rule, rows) for _ in range(3)] == pytest.approx([0, -0.3, -0.45], abs=1e-9)


def test_a_cosine_above_its_target_is_left():
    rows = torch.tensor([[2.0, 0.0], [3.0, 4.0]]).double()
    assert GradVac(num_tasks=2)(rows @ rows.T).tolist() == [1, 1]
