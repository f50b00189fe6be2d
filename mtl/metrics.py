"""The metrics of each kind of target, from torchmetrics, and those that it lacks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

IGNORED = -100  # torch's own mark of a missing label


def classification(num_classes: int) -> dict[str, Metric]:
    """For targets that are class indices: ``accuracy``, the share of samples whose top class is right."""
    return {"accuracy": MulticlassAccuracy(num_classes, average="micro")}


class BitsPerByte(Metric):
    """Bits that the predictions need for a byte of the text, where token ``i`` stands for ``lengths[i]`` bytes.

    ``update(logits [B, T, V], targets [B, T])``; the cross-entropy in bits of all targets but those that are -100, over
    the bytes that they stand for. Tokenizers can be compared by it, which they cannot be by the loss of a token.
    """

    higher_is_better = False
    bits: Tensor
    bytes: Tensor

    def __init__(self, lengths: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("lengths", torch.tensor(lengths), persistent=False)
        self.add_state("bits", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("bytes", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Add a batch."""
        nats = cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="sum")
        self.bits += nats.double() / math.log(2)
        self.bytes += self.lengths[targets[targets != IGNORED]].sum()

    def compute(self) -> Tensor:
        """Bits per byte so far."""
        return self.bits / self.bytes
