"""3 against -1: the positive sign stays with P = (1 + (3 - 1) / (3 + 1)) / 2 = 3/4 (Chen et al. 2020, algorithm 1)."""

import pytest
import torch

from mtl.rules import GradDrop


def test_a_sign_stays_as_often_as_its_purity_says():
    rows = torch.tensor([[3.0], [-1.0]]).expand(2, 10_000)
    (direction,), _ = GradDrop().combine([rows], rows @ rows.T)
    assert set(direction.tolist()) == {3, -1}
    assert (direction == 3).double().mean().item() == pytest.approx(0.75, abs=0.015)  # 3.5 standard deviations


def test_elements_that_agree_are_summed_and_a_leak_lets_the_dropped_sign_through():
    rows = torch.tensor([[2.0, 2.0], [1.0, -2.0]])
    (direction,), _ = GradDrop(leak=0.5).combine([rows], rows @ rows.T)
    assert direction[0] == 3
    assert abs(direction[1]) == 1  # 2 - 0.5 * 2 or 0.5 * 2 - 2
