"""Checks of a task's targets, so that a wrong label is reported before it becomes a device-side assert."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mtl.losses import Focal, MaskedPoisson

MOST = 2**53  # of a count: beyond it numbers are not whole


@dataclass(frozen=True)
class Labels:
    """The targets that a task's loss accepts, inferred from a batch that the loss has accepted.

    ``floating``: whether the targets are real numbers; ``dims``: the number of their axes, including the batch axis;
    ``lowest`` and ``highest``: the accepted range, None without bounds; ``ignored``: the value of a missing label,
    besides NaN.
    """

    floating: bool
    dims: int
    lowest: int | None = None
    highest: int | None = None
    ignored: int | None = None

    def check(self, task: str, target: Any, indices: Sequence[int]) -> str | None:
        """An error message for the targets of the samples ``indices``; None if they are accepted."""
        if not isinstance(target, Tensor):
            return f"the targets of {task} are a {type(target).__name__}, not a tensor"
        if target.is_floating_point() != self.floating:
            expected = "real numbers" if self.floating else "whole numbers"
            return f"the targets of {task} are {target.dtype}, but its loss takes {expected}"
        if target.dim() != self.dims or len(target) != len(indices):
            expected = f"{self.dims} axes, the first of {len(indices)} samples"
            return f"the targets of {task} have the shape {list(target.shape)}, but its loss takes {expected}"
        if self.lowest is None or self.highest is None or not target.numel():
            return None
        known = target.isfinite() if self.floating else torch.ones_like(target, dtype=torch.bool)
        if self.ignored is not None:
            known &= target != self.ignored
        wrong = known & ((target < self.lowest) | (target > self.highest))
        if not wrong.any():
            return None
        position = int(wrong.flatten(1).any(1).nonzero()[0] if wrong.dim() > 1 else wrong.nonzero()[0])
        value = target[position][wrong[position]].flatten()[0].item()
        taken = f"{self.lowest} to {self.highest}" + ("" if self.ignored is None else f", or {self.ignored} for none")
        return f"the target of {task} in sample {indices[position]} is {value}, but its loss takes {taken}"


def labels_of(loss: Any, prediction: Any, target: Any) -> Labels | None:
    """The targets that ``loss`` accepts for such a prediction, from one correct batch; None if they are not tensors."""
    if not isinstance(prediction, Tensor) or not isinstance(target, Tensor) or not target.dim():
        return None
    floating = target.is_floating_point()
    lowest = highest = None
    # The class axis is known for torch's losses, and for losses that follow them by having an ignore_index.
    by_class = isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss) or hasattr(loss, "ignore_index")
    if by_class and not floating and prediction.dim() == target.dim() + 1:
        lowest, highest = 0, prediction.shape[getattr(loss, "class_axis", 1)] - 1
    # Binary labels, or the probability of each class.
    soft = floating and isinstance(loss, nn.CrossEntropyLoss | Focal) and prediction.shape == target.shape
    if soft or isinstance(loss, nn.BCELoss | nn.BCEWithLogitsLoss):
        lowest, highest = 0, 1
    if isinstance(loss, MaskedPoisson):  # a standardised number would be fitted without a word
        lowest, highest = 0, MOST
    return Labels(floating, target.dim(), lowest, highest, None if floating else getattr(loss, "ignore_index", None))
