"""The metrics of each kind of target, from torchmetrics."""

from __future__ import annotations

from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy


def classification(num_classes: int) -> dict[str, Metric]:
    """For targets that are class indices: ``accuracy``, the share of samples whose top class is right."""
    return {"accuracy": MulticlassAccuracy(num_classes, average="micro")}
