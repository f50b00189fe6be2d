"""Metrics of surface normals: the angle between prediction and target."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torchmetrics import Metric

from mtl.losses import is_normal
from mtl.metrics.masked import MaskedMean

WITHIN = (11.25, 22.5, 30)  # degrees
BINS = 18000  # of the angle histogram, a hundredth of a degree each


def normals(batch_mean: bool = False) -> dict[str, Metric]:
    """For surface normals ``[B, 3, H, W]``: the angle between prediction and target, in degrees.

    ``angle_mean`` and ``angle_median`` (lower is better), and the shares of pixels ``within_11.25``, ``within_22.5``
    and ``within_30`` degrees (higher). ``batch_mean`` adds all five by batch, such as ``angle_median_batch_mean``.
    """
    named = {
        "angle_mean": MaskedMean(angle, is_normal),
        "angle_median": MedianAngle(),
        **{f"within_{limit}": Within(limit) for limit in WITHIN},
    }
    if batch_mean:
        named["angle_mean_batch_mean"] = MaskedMean(angle, is_normal, "mean")
        named["angle_median_batch_mean"] = MaskedMean(angle, is_normal, "median")
        named |= {f"within_{limit}_batch_mean": Within(limit, "mean") for limit in WITHIN}
    return named


class Within(MaskedMean):
    """The share of normals ``[B, 3, H, W]`` with an angle below ``limit`` degrees to the target."""

    higher_is_better = True

    def __init__(self, limit: float, by_batch: str | None = None) -> None:
        super().__init__(partial(_within, limit=limit), is_normal, by_batch)


class MedianAngle(Metric):
    """The median angle between normals ``[B, 3, H, W]`` over the whole set, in degrees, from a histogram.

    It is within 0.01 degrees, the width of a bin, of the exact median (the lower of two middle values).
    """

    higher_is_better = False

    histogram: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("histogram", torch.zeros(BINS, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch."""
        errors = angle(prediction, target)[is_normal(target)].nan_to_num(180.0)
        self.histogram += torch.bincount((errors * (BINS / 180)).long().clamp_max(BINS - 1), minlength=BINS)

    def compute(self) -> Tensor:
        """The median so far."""
        upto = self.histogram.cumsum(0)
        half = upto[-1] / 2
        place = torch.searchsorted(upto, half.ceil().long())
        inside = (half - (upto[place] - self.histogram[place])) / self.histogram[place]
        return (place + inside) * (180 / BINS)


def angle(prediction: Tensor, target: Tensor) -> Tensor:
    """The angle in degrees between vectors on axis 1, 90 for a zero vector: two ``[B, 3, H, W]`` -> ``[B, H, W]``."""
    prediction, target = prediction.float(), target.float()
    # From sine and cosine: near 0 the cosine alone is flat, and its rounding would be 0.03 degrees.
    sine = torch.linalg.cross(prediction, target, dim=1).norm(dim=1)
    degrees = torch.atan2(sine, (prediction * target).sum(1)).rad2deg()
    return degrees.where((prediction != 0).any(1), 90.0)


def _within(prediction: Tensor, target: Tensor, limit: float) -> Tensor:
    return (angle(prediction, target) < limit).float()
