"""Metrics of class indices: of a sample's class, and of maps of classes."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from mtl.losses import IGNORED
from mtl.metrics.rankings import ClassAuc, ClassAveragePrecision


def classification(num_classes: int, ignore_index: int = IGNORED) -> dict[str, Metric]:
    """For class indices ``[B]`` or probabilities ``[B, C]``, NaN if missing, and logits ``[B, C]``: ``accuracy``.

    It is the share of correctly classified samples; the class of probabilities is the most probable one.
    """
    return {"accuracy": ClassAccuracy(num_classes, average="micro", ignore_index=ignore_index)}


def segmentation(num_classes: int, ignore_index: int = IGNORED) -> dict[str, Metric]:
    """For maps of class indices ``[B, H, W]`` and logits ``[B, C, H, W]``: ``miou`` and ``pixel_accuracy``.

    Both use one confusion matrix over the whole set. ``miou`` is the mean over the classes that occur in the targets or
    in the predictions. The targets may also be probabilities ``[B, C, H, W]``, as for :func:`classification`.
    """
    options = dict(ignore_index=ignore_index, validate_args=False)  # labels are checked when they are read
    return {
        "miou": ClassJaccardIndex(num_classes, **options),
        "pixel_accuracy": ClassAccuracy(num_classes, average="micro", **options),
    }


def probabilities(num_classes: int) -> dict[str, Metric]:
    """For class indices ``[B]``, -100 if missing, and logits ``[B, C]``: ``accuracy`` and ``log_loss``, in nats.

    For two classes also ``auc``, the exact area under the ROC curve, and ``average_precision``, of the second one: they
    are NaN where one of them has no target.
    """
    found = classification(num_classes) | {"log_loss": LogLoss()}
    if num_classes == 2:
        found |= {"auc": ClassAuc(), "average_precision": ClassAveragePrecision()}
    return found


class FromProbabilities(Metric):
    """Mixin for torchmetrics' multiclass metrics: targets may be probabilities in the shape of the logits."""

    ignore_index: int

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch."""
        if target.is_floating_point() and target.shape == prediction.shape:
            target = target.argmax(1).where(target.isnan().any(1).logical_not(), self.ignore_index)
        super().update(prediction, target)


class ClassAccuracy(FromProbabilities, MulticlassAccuracy):
    """The accuracy over classes."""


class ClassJaccardIndex(FromProbabilities, MulticlassJaccardIndex):
    """The mean intersection over union over classes."""


class LogLoss(MeanMetric):
    """The mean cross-entropy of logits ``[B, C]`` and classes ``[B]``, in nats; targets of -100 are ignored."""

    higher_is_better = False

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch."""
        nats = cross_entropy(prediction.double(), target, reduction="none", ignore_index=IGNORED)
        super().update(nats[target != IGNORED])
