import torch
from torch import nn

from mtl.losses import TokenCrossEntropy


def test_the_token_loss_is_torchs_with_the_classes_moved():
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 3, 5), torch.randint(5, (2, 3))
    targets[0, 1] = 2
    for options in ({}, {"ignore_index": 2}, {"label_smoothing": 0.1}, {"reduction": "sum"}):
        expected = nn.CrossEntropyLoss(**options)(logits.transpose(1, 2), targets)
        torch.testing.assert_close(TokenCrossEntropy(**options)(logits, targets), expected)
    assert TokenCrossEntropy().ignore_index == -100
