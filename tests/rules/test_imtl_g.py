"""Liu et al. 2021, equation 6: equal projections onto the unit gradients, weights of sum one."""

import torch

from mtl.rules import IMTLG


def test_orthogonal_gradients_are_weighted_by_their_inverse_norms():
    rows = torch.tensor([[2.0, 0.0], [0.0, 1.0]]).double()
    weights = IMTLG()(rows @ rows.T)
    # d = (2 w_1, w_2) projects onto u_1 and u_2 equally where 2 w_1 = w_2 = 1 - w_1.
    torch.testing.assert_close(weights, torch.tensor([1 / 3, 2 / 3]).double())


def test_a_weight_may_be_negative():
    rows = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [2.0, 2.0, 1.0]]).double()
    weights = IMTLG()(rows @ rows.T)
    # d = (a, a, -a) projects onto u_1, u_2 and u_3 = (2, 2, 1) / 3 as a; its weights are a (3, 3, -1), of sum 5 a = 1.
    torch.testing.assert_close(weights @ rows, torch.tensor([0.2, 0.2, -0.2]).double())
    torch.testing.assert_close(weights, torch.tensor([0.6, 0.6, -0.2]).double())
