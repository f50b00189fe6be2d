"""Liu et al. 2024, equations 2 and 3: one cosine to all gradients, the length of their projections together."""

import torch

from mtl.rules import ConFIG


def test_two_orthogonal_gradients():
    rows = torch.tensor([[2.0, 0.0], [0.0, 1.0]]).double()
    # u = (1, 1) / sqrt(2); <g_1, u> + <g_2, u> = 3 / sqrt(2).
    torch.testing.assert_close(ConFIG()(rows @ rows.T) @ rows, torch.tensor([1.5, 1.5]).double())


def test_three_gradients_have_one_cosine():
    rows = torch.tensor([[3.0, 4.0, 0.0], [1.0, 0.0, 2.0], [-1.0, 1.0, 0.5]]).double()
    direction = ConFIG()(rows @ rows.T) @ rows
    cosines = torch.cosine_similarity(rows, direction[None])
    torch.testing.assert_close(cosines, cosines[:1].expand(3))
    assert cosines[0] > 0
    torch.testing.assert_close(direction.norm(), (rows @ direction / direction.norm()).sum())
