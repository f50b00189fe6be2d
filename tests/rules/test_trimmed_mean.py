"""Yin et al. 2018, definition 2: of each element the largest and the smallest value are dropped."""

import pytest
import torch

from mtl.rules import TrimmedMean

ROWS = torch.tensor([[5.0, -4.0], [1.0, 0.0], [2.0, 6.0], [30.0, 2.0], [3.0, 1.0]])


@pytest.mark.parametrize(("trim", "expected"), [(0, [8.2, 1]), (1, [10 / 3, 1]), (2, [3, 1])])
def test_what_is_left_is_averaged(trim, expected):
    (direction,), _ = TrimmedMean(trim=trim).combine([ROWS], ROWS @ ROWS.T)
    assert direction.tolist() == pytest.approx(expected)


def test_a_weight_is_the_share_of_the_row_that_is_averaged():
    _, weights = TrimmedMean(trim=1).combine([ROWS], ROWS @ ROWS.T)
    # Of (5, -4) the 5 is kept at 1/3: 25/3 of 41. Of (1, 0) nothing but a zero is kept, of (3, 1) all.
    assert weights.tolist() == pytest.approx([25 / 3 / 41, 0, 4 / 3 / 40, 4 / 3 / 904, 1 / 3])
