"""Two tasks: w_1 = <g_2, g_2 - g_1> / |g_1 - g_2|^2, clipped to [0, 1] (Sener & Koltun 2018, algorithm 1)."""

import torch

from mtl.rules import MGDA


def test_both_tasks_gain_the_same_on_the_shortest_direction():
    rows = torch.tensor([[2.0, 0.0], [0.0, 1.0]]).double()
    weights = MGDA()(rows @ rows.T)
    torch.testing.assert_close(weights, torch.tensor([0.2, 0.8]).double())  # w_1 = 1 / (4 + 1)
    torch.testing.assert_close(rows @ (weights @ rows), torch.tensor([0.8, 0.8]).double())


def test_a_gradient_that_is_the_shortest_direction_itself_gets_all_the_weight():
    rows = torch.tensor([[1.0, 0.0], [3.0, 1.0]]).double()  # <g_1, g_2> = 3 exceeds |g_1|^2 = 1
    assert MGDA()(rows @ rows.T).tolist() == [1, 0]
