"""A primary and a secondary gradient of cosine -0.6; at the first step h_i = g_i / |g_i| (arXiv 2606.29521)."""

import pytest
import torch

from mtl.rules import PCD

ROWS = torch.tensor([[2.0, 0.0], [-3.0, 4.0]]).double()


# d = h_1 + (tau + 0.6) h_2 meets <h_2, d> = tau: (1, 0) + 0.6 (-0.6, 0.8) = (0.64, 0.48), of length 0.8,
# and (1, 0) + 0.8 (-0.6, 0.8) = (0.52, 0.64). It is then given the length 2 of the primary gradient.
@pytest.mark.parametrize(("tau", "shape"), [(0.0, [0.64, 0.48]), (0.2, [0.52, 0.64])])
def test_the_primary_gradient_moves_until_the_secondary_makes_its_progress(tau, shape):
    direction = PCD(num_tasks=2, tau=tau, eps=0.0)(ROWS @ ROWS.T) @ ROWS
    expected = torch.tensor(shape).double()
    torch.testing.assert_close(direction, 2 * expected / expected.norm())


def test_a_secondary_task_that_gains_enough_changes_nothing():
    assert PCD(num_tasks=2)(torch.tensor([[4.0, 1.0], [1.0, 1.0]])).tolist() == pytest.approx([1, 0])
