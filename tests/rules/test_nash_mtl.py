"""Navon et al. 2022, claim 3.2: G w = 1 / w. For two tasks w_i = 1 / (|g_i| sqrt(1 + cos))."""

import torch

from mtl.rules import NashMTL


def test_two_tasks_in_closed_form():
    rows = torch.tensor([[3.0, 4.0], [1.0, 0.0]]).double()  # norms 5 and 1, cosine 0.6
    weights = NashMTL()(rows @ rows.T)
    torch.testing.assert_close(weights, torch.tensor([0.2, 1.0]).double() / 1.6**0.5)


def test_three_tasks_gain_the_inverse_of_their_weights():
    rows = torch.tensor([[3.0, 4.0, 0.0], [1.0, 0.0, 2.0], [-1.0, 1.0, 0.5]]).double()
    weights = NashMTL()(rows @ rows.T)
    torch.testing.assert_close(rows @ (weights @ rows), 1 / weights)
    torch.testing.assert_close((weights @ rows).norm(), torch.tensor(3.0).double().sqrt())  # |d|^2 = w'Gw = K
