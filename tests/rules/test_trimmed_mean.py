"""Yin et al. 2018, definition 2: of each element the largest and the smallest value are dropped."""

import pytest
import torch

from mtl.rules import TrimmedMean

ROWS = torch.tensor([[5.0, -4.0], [1.0, 0.0], [2.0, 6.0], [30.0, 2.0], [3.0, 1.0]])


@pytest.mark.parametrize(("trim", "expected"), [(0, [8.2, 1]), (1, [10 / 3, 1]), (2, [3, 1])])
def test_what_is_left_is_averaged(trim, expected):
    (direction,), _ = TrimmedMean(trim=trim).combine([ROWS], ROWS @ ROWS.T)
    assert direction.tolist() == pytest.approx(expected)
