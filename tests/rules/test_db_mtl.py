"""Lin et al. 2023, equations 3 and 4, two steps by hand with beta = 1/2: averages as long as the longest, summed."""

import torch

from mtl.rules import DBMTL


def test_averages_and_scales():
    rule = DBMTL(num_tasks=2, beta=0.5)
    rows = torch.tensor([[4.0, 0.0], [0.0, 1.0]])
    (direction,), weights = rule.combine([rows], rows @ rows.T)
    assert weights.tolist() == [1, 4]
    assert direction.tolist() == [4, 4]
    rows = torch.tensor([[0.0, 0.0], [0.0, 7.0]])
    (direction,), weights = rule.combine([rows], rows @ rows.T)  # the averages are (2, 0) and (0, 4)
    assert weights.tolist() == [2, 1]
    assert direction.tolist() == [4, 4]
