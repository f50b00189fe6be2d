import torch

from mtl.rules import Sum


def test_the_direction_is_the_gradient_of_the_sum_of_the_losses():
    rows = torch.tensor([[1.0, 0.0], [-2.0, 3.0]]).double()
    weights = Sum()(rows @ rows.T)
    assert weights.tolist() == [1, 1]
    assert (weights @ rows).tolist() == [-1, 3]
