"""Metrics of text."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics import Metric

from mtl.losses import IGNORED


class BitsPerByte(Metric):
    """Bits per byte of text: the cross-entropy of the targets in bits, divided by their length in bytes.

    ``update(logits [B, T, V], targets [B, T])``. Token ``i`` is ``lengths[i]`` bytes long; targets of -100 are ignored.
    Unlike the loss per token, it is comparable between tokenizers.
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
