"""Metrics of each kind of target: those of torchmetrics, and some that it lacks.

There is one function per kind of target, which returns new metrics by name. They accumulate sums over the whole set in
constant memory, and the sums are added over processes; only rankings, as ``auc``, keep every prediction, to be exact.
Missing labels (see mtl.losses) are ignored.

Names that end in ``_batch_mean`` follow MTAN, Nash-MTL and their successors: the mean over batches of each batch's mean
or median. Names without the suffix follow LibMTL: the mean over all pixels. The two differ for one and the same model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics import MeanMetric, Metric, R2Score
from torchmetrics.classification import (
    BinaryAccuracy,
    BinaryAUROC,
    BinaryAveragePrecision,
    BinaryF1Score,
    BinaryPrecisionRecallCurve,
    MulticlassAccuracy,
    MulticlassJaccardIndex,
    MultilabelAccuracy,
    MultilabelF1Score,
)
from torchmetrics.wrappers import MultioutputWrapper

from mtl.losses import IGNORED, is_label, is_normal

WITHIN = (11.25, 22.5, 30)  # degrees
BINS = 18000  # of the angle histogram, a hundredth of a degree each
THRESHOLDS = 101  # on a probability, from 0 to 1


def higher_is_better(metric: Metric) -> bool | None:
    """What a metric says of its direction, or the metric inside of one of torchmetrics' wrappers; None: unknown."""
    for _ in range(8):  # wrappers in wrappers
        if isinstance(metric.higher_is_better, bool):
            return metric.higher_is_better
        inner = getattr(metric, "base_metric", getattr(metric, "wrapped_metric", None))
        if not isinstance(inner, Metric):
            return None
        metric = inner
    return None


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


def depth(invalid: float | None = 0.0, batch_mean: bool = False) -> dict[str, Metric]:
    """For depth maps, prediction p and target t of one shape: ``abs_err``, ``rmse``, and ``rel_err``, ``|p - t| / t``.

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
    """For real numbers of any shape, such as maps of keypoints or edge strengths: ``abs_err`` and ``rmse``."""
    labelled = partial(is_label, invalid=invalid)
    return {"abs_err": MaskedMean(_absolute, labelled), "rmse": MaskedMean(_squared, labelled, root=True)}


def standardised(deviations: Sequence[float], endings: Sequence[str]) -> dict[str, Metric]:
    """For numbers ``[B, columns]`` that were divided by their deviation, NaN if missing: ``abs_err`` and ``rmse``.

    They are in the unit of each column: ``deviations`` has each column's, and ``endings`` end its metrics' names.
    """
    found: dict[str, Metric] = {}
    for i, (ending, std) in enumerate(zip(endings, deviations, strict=True)):
        labelled = partial(_is_number, i)
        found[f"abs_err{ending}"] = MaskedMean(partial(_absolute_in_units, i, std), labelled)
        found[f"rmse{ending}"] = MaskedMean(partial(_squared_in_units, i, std), labelled, root=True)
    return found


def determination(endings: Sequence[str]) -> dict[str, Metric]:
    """For numbers ``[B, columns]``, standardised or not, NaN if missing: ``r2``, with the ending of each column."""
    return {f"r2{ending}": ColumnR2(i) for i, ending in enumerate(endings)}


def counts(endings: Sequence[str]) -> dict[str, Metric]:
    """For counts ``[B, columns]``, NaN if missing, and the logarithms of their means: ``abs_err``, ``rmse``, ``r2``."""
    found: dict[str, Metric] = {}
    for i, ending in enumerate(endings):
        labelled = partial(_is_number, i)
        found[f"abs_err{ending}"] = MaskedMean(partial(_absolute_of_count, i), labelled)
        found[f"rmse{ending}"] = MaskedMean(partial(_squared_of_count, i), labelled, root=True)
        found[f"r2{ending}"] = ColumnR2(i, torch.exp)
    return found


def probabilities(num_classes: int) -> dict[str, Metric]:
    """For class indices ``[B]``, -100 if missing, and logits ``[B, C]``: ``accuracy`` and ``log_loss``, in nats.

    For two classes also ``auc``, the exact area under the ROC curve, and ``average_precision``, of the second one: they
    are NaN where one of them has no target.
    """
    found = classification(num_classes) | {"log_loss": LogLoss()}
    if num_classes == 2:
        found |= {"auc": ClassAuc(), "average_precision": ClassAveragePrecision()}
    return found


def ranking(count: int) -> dict[str, Metric]:
    """For binary labels ``[B, count]``, 0, 1 or NaN, and logits: ``auc`` and ``average_precision``.

    They are exact, and means over the labels that have targets of both values.
    """
    return {"auc": LabelsMean(LogitAuc(), count), "average_precision": LabelsMean(LogitAveragePrecision(), count)}


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


class FromLogits(Metric):
    """Mixin for torchmetrics' binary metrics: logits, and targets 0, 1 or NaN."""

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch."""
        super().update(prediction.sigmoid(), _as_integers(target))


class LogitF1(FromLogits, BinaryF1Score):
    """The F1 of one attribute's logits."""


class LogitAccuracy(FromLogits, BinaryAccuracy):
    """The accuracy of one attribute's logits."""


class LogitsF1(FromLogits, MultilabelF1Score):
    """The mean F1 of several attributes' logits."""


class LogitsAccuracy(FromLogits, MultilabelAccuracy):
    """The mean accuracy of several attributes' logits."""


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
        if (target := _as_integers(target)).ne(IGNORED).any():
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


class LogLoss(MeanMetric):
    """The mean cross-entropy of logits ``[B, C]`` and classes ``[B]``, in nats; targets of -100 are ignored."""

    higher_is_better = False

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch."""
        nats = cross_entropy(prediction.double(), target, reduction="none", ignore_index=IGNORED)
        super().update(nats[target != IGNORED])


class ColumnR2(R2Score):
    """The coefficient of determination of column ``i`` of numbers ``[B, columns]``, NaN if missing.

    ``read`` makes numbers of the predictions. NaN for fewer than two targets.
    """

    higher_is_better = True
    total: Tensor

    def __init__(self, i: int, read: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self._i, self._read = i, read
        self.set_dtype(torch.float64)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch."""
        own, known = prediction[:, self._i].double(), _is_number(self._i, target)
        own = own if self._read is None else self._read(own)
        if known.any():
            super().update(own[known], target[:, self._i][known].double())

    def compute(self) -> Tensor:
        """The value so far."""
        return super().compute() if self.total > 1 else torch.tensor(torch.nan, device=self.device)


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


def angle(prediction: Tensor, target: Tensor) -> Tensor:
    """The angle in degrees between vectors on axis 1, 90 for a zero vector: two ``[B, 3, H, W]`` -> ``[B, H, W]``."""
    prediction, target = prediction.float(), target.float()
    # From sine and cosine: near 0 the cosine alone is flat, and its rounding would be 0.03 degrees.
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


def _is_number(i: int, target: Tensor) -> Tensor:
    return target[:, i].isnan().logical_not()


def _absolute_in_units(i: int, std: float, prediction: Tensor, target: Tensor) -> Tensor:
    return std * (prediction[:, i] - target[:, i]).abs()


def _squared_in_units(i: int, std: float, prediction: Tensor, target: Tensor) -> Tensor:
    return (std * (prediction[:, i] - target[:, i])).square()


def _absolute_of_count(i: int, prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction[:, i].exp() - target[:, i]).abs()


def _squared_of_count(i: int, prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction[:, i].exp() - target[:, i]).square()


def _as_integers(target: Tensor) -> Tensor:
    """Targets 0 and 1 as integers, IGNORED for NaN."""
    return target.nan_to_num(IGNORED).long() if target.is_floating_point() else target
