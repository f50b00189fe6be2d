"""Three gradients in the plane, whose dual cone lies between (0, 1) and (1, 1) (Quinton & Rey 2024, equation 5)."""

import torch

from mtl.rules import UPGrad


def test_every_gradient_is_projected_onto_the_dual_cone():
    rows = torch.tensor([[1.0, 0.0], [-1.0, 1.0], [-1.0, 2.0]]).double()
    direction = UPGrad()(rows @ rows.T) @ rows
    # (1, 0) goes to (1/2, 1/2) on one edge, (-1, 1) and (-1, 2) to (0, 1) and (0, 2) on the other.
    torch.testing.assert_close(direction, torch.tensor([0.5, 3.5]).double() / 3)


def test_gradients_that_agree_are_averaged():
    rows = torch.tensor([[1.0, 0.0], [1.0, 1.0]]).double()
    assert UPGrad()(rows @ rows.T).tolist() == [0.5, 0.5]
