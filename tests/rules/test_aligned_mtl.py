"""Senushkin et al. 2023, equation 9: all singular values become the smallest one; then the rows are summed."""

import pytest
import torch

from mtl.rules import AlignedMTL


@pytest.mark.parametrize(("scale", "length"), [("min", 1), ("median", 5**0.5), ("mean", 5**0.5)])
def test_orthogonal_gradients_get_the_same_length(scale, length):
    rows = torch.tensor([[3.0, 0.0], [0.0, 1.0]]).double()  # eigenvalues 9 and 1
    weights = AlignedMTL(scale)(rows @ rows.T)
    torch.testing.assert_close(weights @ rows, length * torch.ones(2).double())


def test_two_gradients_of_one_length_by_hand():
    rows = torch.tensor([[2.0, 1.0], [2.0, -1.0]]).double()
    # G = [[5, 3], [3, 5]] has the eigenvalues 8 for (1, 1) and 2 for (1, -1), so that
    # w = sqrt(2) V diag(8, 2)^(-1/2) V' (1, 1) = sqrt(2 / 8) (1, 1).
    torch.testing.assert_close(AlignedMTL()(rows @ rows.T), torch.tensor([0.5, 0.5]).double())
