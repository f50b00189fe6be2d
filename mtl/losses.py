"""Losses that torch lacks."""

from __future__ import annotations

from torch import Tensor, nn


class TokenCrossEntropy(nn.CrossEntropyLoss):
    """Cross-entropy with the classes on the last axis: logits ``[..., V]``, targets ``[...]`` -> the mean, in nats.

    Takes the arguments of torch's, which wants the classes on the second axis: there, logits ``[B, V, T]`` would cost a
    transposed copy of themselves.
    """

    class_axis = -1  # of the logits; it is 1 for torch's losses

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The mean over all targets but those that are ``ignore_index``."""
        return super().forward(input.flatten(0, -2), target.flatten())
