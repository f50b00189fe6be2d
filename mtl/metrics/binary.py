"""Metrics of labels that are 0 or 1: attributes, edges and masks."""

from __future__ import annotations

from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import (
    BinaryAccuracy,
    BinaryF1Score,
    BinaryPrecisionRecallCurve,
    MultilabelAccuracy,
    MultilabelF1Score,
)

from mtl.losses import IGNORED

THRESHOLDS = 101  # on a probability, from 0 to 1


def attributes(count: int | None = None) -> dict[str, Metric]:
    """For binary attributes, logits and targets 0, 1 or NaN: ``f1`` of the positives, and ``accuracy``.

    With ``count=None`` the tensors are one attribute, of any shape; otherwise they are ``[B, count]`` and the metrics
    are means over the attributes. An attribute without positives in targets and predictions has an F1 of 0.
    """
    if count is None:
        return {"f1": LogitF1(ignore_index=IGNORED), "accuracy": LogitAccuracy(ignore_index=IGNORED)}
    return {
        "f1": LogitsF1(num_labels=count, ignore_index=IGNORED),
        "accuracy": LogitsAccuracy(num_labels=count, ignore_index=IGNORED),
    }


def edges() -> dict[str, Metric]:
    """For edge maps, logits and targets 0, 1 or NaN: ``max_f``, the best F over one threshold for the whole set.

    It is not the ODS-F of the BSDS benchmark, which thins the edges and tolerates small displacements.
    """
    return {"max_f": MaxF(THRESHOLDS)}


def saliency() -> dict[str, Metric]:
    """For masks, logits and targets 0, 1 or NaN: ``max_f`` and ``max_iou``, each the best over one threshold."""
    return {"max_f": MaxF(THRESHOLDS), "max_iou": MaxIoU(THRESHOLDS)}


class FromLogits(Metric):
    """Mixin for torchmetrics' binary metrics: logits, and targets 0, 1 or NaN."""

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch."""
        super().update(prediction.sigmoid(), as_integers(target))


class LogitF1(FromLogits, BinaryF1Score):
    """The F1 of one attribute's logits."""


class LogitAccuracy(FromLogits, BinaryAccuracy):
    """The accuracy of one attribute's logits."""


class LogitsF1(FromLogits, MultilabelF1Score):
    """The mean F1 of several attributes' logits."""


class LogitsAccuracy(FromLogits, MultilabelAccuracy):
    """The mean accuracy of several attributes' logits."""


class MaxF(FromLogits, BinaryPrecisionRecallCurve):
    """The best F1 over the whole set with one threshold on the probability."""

    higher_is_better = True

    def __init__(self, thresholds: int) -> None:
        super().__init__(thresholds=thresholds, ignore_index=IGNORED)

    def compute(self) -> Tensor:
        """The best value so far; 0 without positives."""
        right, wrong = self.confmat[:, 1, 1], self.confmat[:, 0, 1] + self.confmat[:, 1, 0]
        return (2 * right / (2 * right + wrong).clamp_min(1)).max()


class MaxIoU(MaxF):
    """The best intersection over union over the whole set with one threshold on the probability."""

    def compute(self) -> Tensor:
        """The best value so far; 0 without positives."""
        right, wrong = self.confmat[:, 1, 1], self.confmat[:, 0, 1] + self.confmat[:, 1, 0]
        return (right / (right + wrong).clamp_min(1)).max()


def as_integers(target: Tensor) -> Tensor:
    """Targets 0 and 1 as integers, IGNORED for NaN."""
    return target.nan_to_num(IGNORED).long() if target.is_floating_point() else target
