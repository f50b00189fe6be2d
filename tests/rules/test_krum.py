"""Five numbers and f = 1: the score of each is the sum of its squared distances to the K - f - 2 = 2 nearest."""

import pytest
import torch

from mtl.rules import Krum

# Scores: 7^2 + 14^2 = 245, 7^2 + 7^2 = 98, 7^2 + 10^2 = 149, 2^2 + 10^2 = 104, 2^2 + 12^2 = 148.
ROWS = torch.tensor([[0.0], [7.0], [14.0], [24.0], [26.0]]).double()


# Distances that are not squared would take 24 (2 + 10) before 7 (7 + 7).
@pytest.mark.parametrize(("selected", "taken"), [(1, [7]), (2, [7, 24]), (3, [7, 24, 26])])
def test_the_lowest_scores_are_averaged(selected, taken):
    weights = Krum(byzantine=1, selected=selected)(ROWS @ ROWS.T)
    assert ROWS[weights > 0, 0].tolist() == taken
    assert (weights @ ROWS).item() == pytest.approx(sum(taken) / selected)
