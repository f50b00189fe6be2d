import pytest
import torch

from mtl.heads import MLP, NextToken, PyramidPool


def test_shapes():
    assert MLP(6, 3, hidden_features=5)(torch.zeros(2, 4, 6)).shape == (2, 4, 3)
    assert PyramidPool([2, 3], 4)([torch.zeros(5, 2, 8, 8), torch.zeros(5, 3, 4, 4)]).shape == (5, 4)


def test_a_pyramid_head_reads_every_level():
    head = PyramidPool([1, 1], 1)
    levels = [torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 2, 2)]
    plain = head(levels)
    for i in range(2):
        changed = [level + (j == i) for j, level in enumerate(levels)]
        assert head(changed).item() - plain.item() == pytest.approx(head.linear.weight[0, i].item(), abs=1e-6)


def test_an_impossible_width_is_named():
    with pytest.raises(ValueError, match="hidden_features=0 must each be 1 or more"):
        MLP(2, 2, hidden_features=0)


def test_a_next_token_head_has_a_layer_of_its_kind():
    features = torch.randn(2, 6, 8)
    changed = features.clone()
    changed[:, 2] += torch.randn(8)
    for layer, seen in (("mlp", [2]), ("transformer", [2, 3, 4, 5])):
        head = NextToken(8, 11, layer, num_heads=2)
        difference = (head(changed) - head(features)).abs().amax((0, 2))
        assert head(features).shape == (2, 6, 11)
        assert torch.nonzero(difference > 1e-6).flatten().tolist() == seen
