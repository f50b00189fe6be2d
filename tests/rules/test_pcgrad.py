"""Two conflicting gradients by hand (Yu et al. 2020, algorithm 1): h_i = g_i - <g_i, g_j> / |g_j|^2 g_j."""

import torch

from mtl.rules import PCGrad


def test_each_gradient_loses_its_component_against_the_other():
    rows = torch.tensor([[1.0, 0.0], [-1.0, 1.0]]).double()  # <g_1, g_2> = -1
    weights = PCGrad()(rows @ rows.T)
    # h_1 = (1, 0) + 1/2 (-1, 1) = (1/2, 1/2) and h_2 = (-1, 1) + (1, 0) = (0, 1).
    torch.testing.assert_close(weights, torch.tensor([2.0, 1.5]).double())
    torch.testing.assert_close(weights @ rows, torch.tensor([0.5, 1.5]).double())


def test_gradients_that_agree_are_summed():
    rows = torch.tensor([[1.0, 0.0], [1.0, 1.0]]).double()
    assert PCGrad()(rows @ rows.T).tolist() == [1, 1]
