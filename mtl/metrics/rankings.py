"""Metrics of the order that logits put the samples in: the area under the ROC curve, and average precision."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import BinaryAUROC, BinaryAveragePrecision
from torchmetrics.wrappers import MultioutputWrapper

from mtl.losses import IGNORED
from mtl.metrics.binary import as_integers


def ranking(count: int) -> dict[str, Metric]:
    """For binary labels ``[B, count]``, 0, 1 or NaN, and logits: ``auc`` and ``average_precision``.

    They are exact, and means over the labels that have targets of both values.
    """
    return {"auc": LabelsMean(LogitAuc(), count), "average_precision": LabelsMean(LogitAveragePrecision(), count)}


class Ranking(Metric):
    """Mixin for torchmetrics' rankings of logits by targets 0, 1 or NaN.

    NaN, and not torchmetrics' 0, without a positive and a negative target.
    """

    target: list[Tensor] | Tensor  # one tensor where processes have been joined

    def __init__(self) -> None:
        super().__init__(ignore_index=IGNORED)
        self.set_dtype(torch.float64)  # of what a process without a batch gives the others

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch."""
        if (target := as_integers(target)).ne(IGNORED).any():
            x = prediction.double()
            super().update(0.5 + 0.5 * x / (1 + x.abs()), target)  # in their order, where a sigmoid would be one
            self.target[-1] = self.target[-1].double()

    def compute(self) -> Tensor:
        """The value so far."""
        labels = torch.cat(self.target) if isinstance(self.target, list) and self.target else self.target
        if not isinstance(labels, Tensor) or len(labels.unique()) < 2:
            return torch.tensor(torch.nan, device=self.device)
        return super().compute()


class LogitAuc(Ranking, BinaryAUROC):
    """The exact area under the ROC curve of one attribute's logits."""


class LogitAveragePrecision(Ranking, BinaryAveragePrecision):
    """The exact average precision of one attribute's logits."""


class OfTwo(Metric):
    """Mixin: of two classes the second one's logit, from logits ``[B, 2]`` and classes ``[B]``."""

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch."""
        super().update(prediction[:, 1].double() - prediction[:, 0].double(), target)


class ClassAuc(OfTwo, LogitAuc):
    """The area under the ROC curve of two classes' logits."""


class ClassAveragePrecision(OfTwo, LogitAveragePrecision):
    """The average precision of two classes' logits."""


class LabelsMean(MultioutputWrapper):
    """The mean of a metric of one attribute over several, ``[B, count]``, without those where it is NaN."""

    higher_is_better = True

    def __init__(self, metric: Metric, count: int) -> None:
        super().__init__(metric, count, remove_nans=False)

    def compute(self) -> Tensor:
        """The mean so far."""
        return super().compute().nanmean()
