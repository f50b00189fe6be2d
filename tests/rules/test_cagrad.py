"""Liu et al. 2021, equation 3: max_d min_i <g_i, d> in the ball |d - g_0| <= c |g_0|, searched on a grid."""

import pytest
import torch

from mtl.rules import CAGrad


@pytest.mark.parametrize("c", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("second", [[-0.5, 1.0], [0.2, 3.0], [-1.0, 0.4]])
def test_no_direction_of_the_ball_is_better_for_the_task_it_serves_worst(c, second):
    rows = torch.tensor([[1.0, 0.0], second]).double()
    mean = rows.mean(0)
    radius = c * mean.norm()
    direction = CAGrad(c)(rows @ rows.T) @ rows
    angles = torch.linspace(0, 2 * torch.pi, 200_001).double()
    circle = mean + radius * torch.stack([angles.cos(), angles.sin()], 1)
    best = circle[(circle @ rows.T).amin(1).argmax()]
    torch.testing.assert_close(direction, best, rtol=0, atol=1e-4)
    assert (direction - mean).norm().item() == pytest.approx(radius.item())
