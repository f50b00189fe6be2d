"""The mean of two gradients projected onto their dual cone (Lopez-Paz & Ranzato 2017, equation 8)."""

import torch

from mtl.rules import DualProj


def test_a_mean_that_conflicts_with_a_task_moves_to_the_edge_of_the_cone():
    rows = torch.tensor([[4.0, 0.0], [-1.0, 1.0]]).double()
    weights = DualProj()(rows @ rows.T)
    # The mean (1.5, 0.5) loses its component -1 against (-1, 1): (1.5, 0.5) + 1/2 (-1, 1) = (1, 1).
    torch.testing.assert_close(weights @ rows, torch.tensor([1.0, 1.0]).double())
    torch.testing.assert_close(weights, torch.tensor([0.5, 1.0]).double())


def test_a_mean_that_conflicts_with_no_task_stays():
    rows = torch.tensor([[1.0, 0.0], [-1.0, 2.0]]).double()  # they conflict, their mean (0, 1) with neither
    assert DualProj()(rows @ rows.T).tolist() == [0.5, 0.5]
