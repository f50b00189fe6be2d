"""The metrics of each kind of target, from torchmetrics, and those that it lacks.

A function a kind, which gives fresh metrics by name. All accumulate sums over the whole set, in memory that does not
grow with it, and those sums add up over processes. What is no label (see mtl.losses) counts nowhere. Names that end in
``_batch_mean`` are the convention of MTAN, Nash-MTL and their successors, where every batch's own mean or median counts
the same; the names without it, as LibMTL has them, count every pixel the same. They differ for the same model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics import Metric
from torchmetrics.classification import (
    BinaryAccuracy,
    BinaryF1Score,
    BinaryPrecisionRecallCurve,
    MulticlassAccuracy,
    MulticlassJaccardIndex,
    MultilabelAccuracy,
    MultilabelF1Score,
)

from mtl.data.labels import IGNORED
from mtl.losses import is_label, is_normal

WITHIN = (11.25, 22.5, 30)  # degrees
BINS = 18000  # of an angle's error, a hundredth of a degree each
THRESHOLDS = 101  # of a probability, from 0 to 1


def classification(num_classes: int, ignore_index: int = IGNORED) -> dict[str, Metric]:
    """For targets that are class indices: ``accuracy``, the share of samples whose top class is right."""
    return {"accuracy": MulticlassAccuracy(num_classes, average="micro", ignore_index=ignore_index)}


def segmentation(num_classes: int, ignore_index: int = IGNORED) -> dict[str, Metric]:
    """For maps of class indices ``[B, H, W]`` and logits ``[B, C, H, W]``: ``miou`` and ``pixel_accuracy``.

    Both from one confusion matrix over the whole set. ``miou`` is the mean over the classes that occur in it, in the
    targets or in the predictions.
    """
    options = dict(ignore_index=ignore_index, validate_args=False)  # the labels are checked where they are read
    return {
        "miou": MulticlassJaccardIndex(num_classes, **options),
        "pixel_accuracy": MulticlassAccuracy(num_classes, average="micro", **options),
    }


def depth(invalid: float | None = 0.0, batch_mean: bool = False) -> dict[str, Metric]:
    """For depth maps, prediction and target of one shape: ``abs_err``, ``rmse`` and ``rel_err``, |p - t| / t.

    ``batch_mean`` adds ``abs_err_batch_mean`` and ``rel_err_batch_mean``. Lower is better.
    """
    labelled = partial(is_label, invalid=invalid)
    named = {
        "abs_err": MaskedMean(_absolute, labelled),
        "rel_err": MaskedMean(_relative, labelled),
        "rmse": MaskedMean(_squared, labelled, root=True),
    }
    if batch_mean:
        named["abs_err_batch_mean"] = MaskedMean(_absolute, labelled, "mean")
        named["rel_err_batch_mean"] = MaskedMean(_relative, labelled, "mean")
    return named


def regression(invalid: float | None = None) -> dict[str, Metric]:
    """For real numbers of any shape, as maps of keypoints or edge strengths: ``abs_err`` and ``rmse``."""
    labelled = partial(is_label, invalid=invalid)
    return {"abs_err": MaskedMean(_absolute, labelled), "rmse": MaskedMean(_squared, labelled, root=True)}


def normals(batch_mean: bool = False) -> dict[str, Metric]:
    """For surface normals ``[B, 3, H, W]``: the angle between prediction and target, in degrees.

    ``angle_mean`` and ``angle_median`` (lower is better), and the shares of pixels ``within_11.25``, ``within_22.5``
    and ``within_30`` degrees (higher). ``batch_mean`` adds all five by batch, as ``angle_median_batch_mean``.
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


def attributes(count: int | None = None) -> dict[str, Metric]:
    """For binary attributes, logits and targets 0, 1 or NaN: ``f1`` of the positives, and ``accuracy``.

    ``count``: of one attribute, of any shape (None), or the mean over so many, ``[B, count]``. An attribute with
    neither positives nor predicted ones has the F1 of 0.
    """
    if count is None:
        return {"f1": LogitF1(ignore_index=IGNORED), "accuracy": LogitAccuracy(ignore_index=IGNORED)}
    return {
        "f1": LogitsF1(num_labels=count, ignore_index=IGNORED),
        "accuracy": LogitsAccuracy(num_labels=count, ignore_index=IGNORED),
    }


def edges() -> dict[str, Metric]:
    """For maps of edges, logits and targets 0, 1 or NaN: ``max_f``, the best F over one threshold for the whole set.

    Not the ODS-F of the BSDS benchmark, which thins the edges and takes those within a distance for right.
    """
    return {"max_f": MaxF(THRESHOLDS)}


def saliency() -> dict[str, Metric]:
    """For masks, logits and targets 0, 1 or NaN: ``max_f`` and ``max_iou``, the best over one threshold for the set."""
    return {"max_f": MaxF(THRESHOLDS), "max_iou": MaxIoU(THRESHOLDS)}


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


class MaskedMean(Metric):
    """The mean of ``error(prediction, target)`` over where ``labelled(target)``, or its root.

    ``by_batch``: the mean over the batches of each batch's ``mean`` or ``median`` (the lower of two, as torch's); of
    several processes each one's part of a batch counts as a batch.
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
        """Add a batch."""
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


class Within(MaskedMean):
    """The share of normals ``[B, 3, H, W]`` that are less than ``limit`` degrees from the target's."""

    higher_is_better = True

    def __init__(self, limit: float, by_batch: str | None = None) -> None:
        super().__init__(partial(_within, limit=limit), is_normal, by_batch)


class MedianAngle(Metric):
    """The median angle between normals ``[B, 3, H, W]`` over the whole set, in degrees, from a histogram of the errors.

    Within 0.01 degrees, the width of a bin, of the median of all pixels (the lower one of an even number).
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


class LogitF1(BinaryF1Score):
    """The F1 of one attribute's logits."""

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch."""
        super().update(prediction.sigmoid(), _whole(target))


class LogitAccuracy(BinaryAccuracy):
    """The share of one attribute's logits that have the right sign."""

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch."""
        super().update(prediction.sigmoid(), _whole(target))


class LogitsF1(MultilabelF1Score):
    """The mean F1 of several attributes' logits."""

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch."""
        super().update(prediction.sigmoid(), _whole(target))


class LogitsAccuracy(MultilabelAccuracy):
    """The mean share of several attributes' logits that have the right sign."""

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch."""
        super().update(prediction.sigmoid(), _whole(target))


class MaxF(BinaryPrecisionRecallCurve):
    """The best F1 that one threshold on the probability has over the whole set."""

    higher_is_better = True

    def __init__(self, thresholds: int) -> None:
        super().__init__(thresholds=thresholds, ignore_index=IGNORED)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch."""
        super().update(prediction.sigmoid(), _whole(target))

    def compute(self) -> Tensor:
        """The best so far; 0 where nothing is positive."""
        right, wrong = self.confmat[:, 1, 1], self.confmat[:, 0, 1] + self.confmat[:, 1, 0]
        return (2 * right / (2 * right + wrong).clamp_min(1)).max()


class MaxIoU(MaxF):
    """The best intersection over union that one threshold on the probability has over the whole set."""

    def compute(self) -> Tensor:
        """The best so far; 0 where nothing is positive."""
        right, wrong = self.confmat[:, 1, 1], self.confmat[:, 0, 1] + self.confmat[:, 1, 0]
        return (right / (right + wrong).clamp_min(1)).max()


def angle(prediction: Tensor, target: Tensor) -> Tensor:
    """The degrees between vectors on axis 1, 90 for a zero vector: ``[B, 3, H, W]`` twice -> ``[B, H, W]``."""
    prediction, target = prediction.float(), target.float()
    # By sine and cosine: the cosine alone is flat near 0, where its rounding comes to 0.03 degrees.
    sine = torch.linalg.cross(prediction, target, dim=1).norm(dim=1)
    degrees = torch.atan2(sine, (prediction * target).sum(1)).rad2deg()
    return degrees.where((prediction != 0).any(1), 90.0)


def _within(prediction: Tensor, target: Tensor, limit: float) -> Tensor:
    return (angle(prediction, target) < limit).float()


def _absolute(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target).abs()


def _squared(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target).square()


def _relative(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target).abs() / target


def _whole(target: Tensor) -> Tensor:
    """Targets 0 and 1 as whole numbers, IGNORED for NaN."""
    return target.nan_to_num(IGNORED).long() if target.is_floating_point() else target
