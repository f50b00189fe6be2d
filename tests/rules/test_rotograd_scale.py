"""Javaloy & Valera 2022, equations 7 to 9: w_k = C / |g_k|, C the mean norm, weighted by |g_k| / |g_k^0|."""

import torch

from mtl.rules import RotoGradScale


def test_two_steps_by_hand():
    rule = RotoGradScale(num_tasks=2)
    first = rule(torch.tensor([[9.0, 1.0], [1.0, 1.0]]))  # norms 3 and 1: C = (3 + 1) / 2
    torch.testing.assert_close(first, torch.tensor([2 / 3, 2.0]).double())
    # Norms 3/2 and 1, ratios 1/2 and 1: C = 1/3 * 3/2 + 2/3 * 1 = 7/6.
    second = rule(torch.tensor([[2.25, 1.0], [1.0, 1.0]]))
    torch.testing.assert_close(second, torch.tensor([7 / 9, 7 / 6]).double())
