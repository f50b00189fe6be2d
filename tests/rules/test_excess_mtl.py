"""He et al. 2024, equations 6, 7 and 9, two steps by hand with eta = sqrt(2) log 3."""

import math

import pytest
import torch

from mtl.rules import ExcessMTL


def test_the_task_that_is_further_from_its_optimum_gains_weight():
    rule = ExcessMTL(num_tasks=2, eta=math.sqrt(2) * math.log(3))
    rows = torch.tensor([[2.0, 0.0], [0.0, 5.0]])
    _, weights = rule.combine([rows], rows @ rows.T)
    assert weights.tolist() == [1, 1]  # both excess risks are the first of their task: relative to it they are 1
    rows = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    (direction,), weights = rule.combine([rows], rows @ rows.T)
    # e_1 = 2^2 / sqrt(2^2 + 2^2) is 1 / sqrt(2) of the first, e_2 = 0: w_1 / w_2 = exp(eta / sqrt(2)) = 3.
    assert weights.tolist() == pytest.approx([1.5, 0.5])
    assert direction.tolist() == pytest.approx([3, 0])
