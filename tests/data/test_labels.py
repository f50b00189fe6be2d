"""Targets are checked against the loss that takes them: kind, shape and range."""

import pytest
import torch
from torch import nn

from mtl.data.labels import Labels, labels_of
from mtl.losses import Focal

CLASSES = labels_of(nn.CrossEntropyLoss(), torch.zeros(2, 3), torch.zeros(2, dtype=torch.long))
DENSE = labels_of(
    nn.CrossEntropyLoss(ignore_index=255), torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.long)
)
BINARY = labels_of(nn.BCEWithLogitsLoss(), torch.zeros(2), torch.zeros(2))
REAL = labels_of(nn.MSELoss(), torch.zeros(2, 5), torch.zeros(2, 5))
NAN = float("nan")


@pytest.mark.parametrize(
    ("labels", "target", "words"),
    [
        (CLASSES, torch.tensor([0, 2, 1]), None),
        (CLASSES, torch.tensor([0, 3, 1]), "the target of t in sample 11 is 3, but its loss takes 0 to 2, or -100 for"),
        (CLASSES, torch.tensor([0, -1, 1]), "the target of t in sample 11 is -1, but"),
        (CLASSES, torch.tensor([-100, 2, 1]), None),
        (CLASSES, torch.tensor([0.0, 1.0, 2.0]), "the targets of t are torch.float32, but its loss takes whole"),
        (CLASSES, torch.tensor([[0], [1], [2]]), "the targets of t have the shape [3, 1], but its loss takes 1 axes"),
        (CLASSES, torch.tensor([0, 1]), "have the shape [2], but its loss takes 1 axes, the first of 3 samples"),
        (CLASSES, "text", "the targets of t are a str, not a tensor"),
        (DENSE, torch.full((3, 4, 4), 255), None),
        (DENSE, torch.full((3, 6, 5), 2), None),
        (DENSE, torch.tensor([0, 0, 254]).view(3, 1, 1).repeat(1, 4, 4), "in sample 12 is 254, but its loss takes 0"),
        (BINARY, torch.tensor([0.0, NAN, 1.0]), None),
        (BINARY, torch.tensor([0.0, 2.0, 1.0]), "the target of t in sample 11 is 2.0, but its loss takes 0 to 1"),
        (REAL, torch.full((3, 5), 1e9), None),
        (REAL, torch.zeros(3, 5, dtype=torch.long), "the targets of t are torch.int64, but its loss takes real"),
    ],
)
def test_targets_are_checked_against_what_their_loss_takes(labels, target, words):
    found = labels.check("t", target, [10, 11, 12])
    assert found is None if words is None else words in found


def test_a_loss_that_counts_classes_otherwise_is_left_alone():
    class Ordinal(nn.Module):
        """Three thresholds between four classes."""

    assert labels_of(Ordinal(), torch.zeros(2, 3), torch.zeros(2, dtype=torch.long)) == Labels(False, 1)


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), Focal()])
def test_probabilities_are_from_0_to_1(loss):
    labels = labels_of(loss, torch.zeros(2, 3), torch.zeros(2, 3))
    assert labels.check("t", torch.eye(3), [0, 1, 2]) is None
    assert "in sample 1 is 255.0, but its loss takes 0 to 1" in labels.check("t", torch.eye(3) * 255, [1, 2, 3])
