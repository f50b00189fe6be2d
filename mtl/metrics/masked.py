"""Means of an error over what has a label."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchmetrics import Metric


class MaskedMean(Metric):
    """The mean of ``error(prediction, target)`` over the labels, where ``labelled(target)``; ``root`` takes its root.

    ``by_batch``: the mean over batches of each batch's ``mean`` or ``median`` (torch's, the lower of two middle
    values). Each rank's share of a batch counts as a batch.
    """

    higher_is_better = False

    total: Tensor
    count: Tensor

    def __init__(
        self,
        error: Callable[[Tensor, Tensor], Tensor],
        labelled: Callable[[Tensor], Tensor],
        by_batch: str | None = None,
        root: bool = False,
    ) -> None:
        super().__init__()
        self._error, self._labelled, self._by_batch, self._root = error, labelled, by_batch, root
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch; ValueError if the shapes differ, for torch would compare every sample with every other one."""
        if prediction.shape != target.shape:
            raise ValueError(f"prediction {list(prediction.shape)} and target {list(target.shape)} differ in shape")
        if self._by_batch is None:
            mask = self._labelled(target)
            self.total += self._error(prediction, target).where(mask, 0.0).sum(dtype=torch.float64)
            self.count += mask.sum()
            return
        errors = self._error(prediction, target)[self._labelled(target)]
        if errors.numel():
            self.total += errors.mean(dtype=torch.float64) if self._by_batch == "mean" else errors.median()
            self.count += 1

    def compute(self) -> Tensor:
        """The mean so far."""
        mean = self.total / self.count
        return mean.sqrt() if self._root else mean
