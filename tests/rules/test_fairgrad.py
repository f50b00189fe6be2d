"""Ban & Ji 2024, equation 7: G w = w^(-1/alpha), solved by hand where all gains depend on one weight each."""

import pytest
import torch

from mtl.rules import FairGrad


@pytest.mark.parametrize(("alpha", "weight"), [(0.5, 1 / 4), (1, 1 / 8), (2, 1 / 16)])
def test_orthogonal_gradients(alpha, weight):
    # |g|^2 w = w^(-1/alpha) makes w = |g|^(-2 alpha / (1 + alpha)); |g| = 8.
    weights = FairGrad(alpha)(torch.tensor([[64.0, 0.0], [0.0, 1.0]]))
    torch.testing.assert_close(weights, torch.tensor([weight, 1.0]).double())


@pytest.mark.parametrize(("alpha", "weight"), [(0.5, 1 / 2), (2, 1 / 4)])
def test_two_gradients_of_one_length(alpha, weight):
    # Both gain (5 + 3) w = w^(-1/alpha): w = 8^(-alpha / (1 + alpha)).
    weights = FairGrad(alpha)(torch.tensor([[5.0, 3.0], [3.0, 5.0]]))
    torch.testing.assert_close(weights, torch.tensor([weight, weight]).double())
