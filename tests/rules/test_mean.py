import torch

from mtl.rules import Mean


def test_the_direction_is_the_gradient_of_the_mean_of_the_losses():
    rows = torch.tensor([[1.0, 0.0], [-2.0, 3.0], [4.0, 0.0], [1.0, 1.0]]).double()
    weights = Mean()(rows @ rows.T)
    assert weights.tolist() == [0.25] * 4
    assert (weights @ rows).tolist() == [1, 1]
