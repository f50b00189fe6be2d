"""Losses that torch lacks.

Each is the mean over the labels of a batch. A loss with a method ``labelled(target) -> mask`` defines itself which
labels exist. Without any label the mean is NaN; training never computes it, see :func:`mtl.tasks.present_tasks`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cosine_similarity,
    cross_entropy,
    huber_loss,
    poisson_nll_loss,
)
from torchvision.ops import sigmoid_focal_loss

IGNORED = -100  # torch's default ignore_index: the label is missing


class TokenCrossEntropy(nn.CrossEntropyLoss):
    """Cross-entropy with the classes on the last axis: logits ``[..., V]``, targets ``[...]`` -> the mean, in nats.

    It has the arguments of torch.nn.CrossEntropyLoss, which expects the classes on the second axis and so would need a
    transposed copy ``[B, V, T]`` of the logits.
    """

    class_axis = -1  # of the logits; 1 for torch's losses

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The mean over all targets except ``ignore_index``."""
        return super().forward(input.flatten(0, -2), target.flatten())


class MaskedL1(nn.Module):
    """The mean absolute error over the labels; prediction and target have one shape, as depth ``[B, 1, H, W]``.

    A target that is NaN or ``invalid`` is a missing label; with ``invalid=None`` every number is a label. ValueError if
    the shapes differ.
    """

    def __init__(self, invalid: float | None = 0.0) -> None:
        super().__init__()
        self.invalid = invalid

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The mean error, a scalar in the target's unit."""
        _check_shapes(prediction, target)
        mask = self.labelled(target)
        # Replaced before the error is computed: NaN times a mask of zero would still be NaN.
        return _mean(self.error(prediction, target.where(mask, 1.0)), mask)

    def error(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The absolute error of each element."""
        return (prediction - target).abs()

    def labelled(self, target: Tensor) -> Tensor:
        """A mask of the labels, in the target's shape."""
        return is_label(target, self.invalid)


class MaskedL2(MaskedL1):
    """The mean squared error over the labels; see :class:`MaskedL1`."""

    def error(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The squared error of each element, in the target's squared unit."""
        return (prediction - target).square()


class MaskedHuber(MaskedL1):
    """The mean of torch.nn.HuberLoss over the labels: squared up to ``delta``, linear beyond.

    So that labels far away count less. ``delta`` is in the target's unit, which is a deviation where numbers are
    standardised. Missing labels as in :class:`MaskedL1`, with NaN alone by default. ValueError unless ``delta`` is
    above 0.
    """

    def __init__(self, delta: float = 1.0, invalid: float | None = None) -> None:
        super().__init__(invalid)
        if delta <= 0:
            raise ValueError(f"delta={delta} must be above 0.")
        self.delta = delta

    def error(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Huber's loss of each element."""
        return huber_loss(prediction, target, reduction="none", delta=self.delta)


class MaskedQuantile(MaskedL1):
    """The mean pinball loss over the labels: the prediction becomes the ``quantile`` of the target, as 0.9.

    It is ``max(q e, (q - 1) e)`` of the error e = target - prediction; 0.5 is the median. Missing labels as in
    :class:`MaskedL1`, with NaN alone by default. ValueError unless ``quantile`` is between 0 and 1.

    Source: Koenker & Bassett 1978, equation 3.1.
    """

    def __init__(self, quantile: float, invalid: float | None = None) -> None:
        super().__init__(invalid)
        if not 0 < quantile < 1:
            raise ValueError(f"quantile={quantile} must be between 0 and 1.")
        self.quantile = quantile

    def error(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The pinball loss of each element."""
        e = target - prediction
        return torch.maximum(self.quantile * e, (self.quantile - 1) * e)


class MaskedPoisson(MaskedL1):
    """The mean of torch.nn.PoissonNLLLoss over the labels: the prediction is the logarithm of a count's mean.

    The targets are whole numbers from 0 on, not standardised: ``kinds: {visits: count}`` of a table. Missing labels are
    NaN. ValueError if the shapes differ.
    """

    def __init__(self) -> None:
        super().__init__(None)

    def error(self, prediction: Tensor, target: Tensor) -> Tensor:
        """``exp(p) - t p`` of each element: the negative log-likelihood, but for ``log t!``."""
        return poisson_nll_loss(prediction, target, reduction="none")


class InverseDepth(MaskedL1):
    """The mean of ``|1 / prediction - 1 / target|`` over the labels, which gives more weight to near pixels.

    Prediction and target are depths, so the metrics for depth apply; missing labels as in :class:`MaskedL1`. Below
    ``nearest``, in the target's unit, ``1 / x`` continues as its tangent: it stays finite and decreasing, so that even
    a prediction of zero or less has a useful gradient. ValueError unless ``nearest`` is above zero.

    Source: Kendall et al. 2018, section 4 (L1 distance of inverse depths; there the head predicts the inverse).
    """

    def __init__(self, invalid: float | None = 0.0, nearest: float = 0.5) -> None:
        super().__init__(invalid)
        if nearest <= 0:
            raise ValueError(f"nearest={nearest} must be above 0.")
        self.nearest = nearest

    def error(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The absolute error of each element, in the inverse of the target's unit."""
        return (self._inverse(prediction) - self._inverse(target)).abs()

    def _inverse(self, depth: Tensor) -> Tensor:
        bounded = depth.clamp_min(self.nearest)
        return 1 / bounded + (bounded - depth) / bounded.square()


class CosineNormals(nn.Module):
    """One minus the mean cosine between predicted and true normals, both ``[B, 3, H, W]`` and of any length.

    A true normal that is the zero vector or contains NaN is a missing label. ValueError if the shapes differ.

    Source: Eigen & Fergus 2015, section 3.2, in the form of Liu et al. 2019 (MTAN), equation 6.
    """

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The loss, a scalar from 0 to 2."""
        _check_shapes(prediction, target)
        mask = self.labelled(target)
        return 1 - _mean(cosine_similarity(prediction, target.where(mask.unsqueeze(1), 1.0), dim=1), mask)

    def labelled(self, target: Tensor) -> Tensor:
        """A mask of the labelled pixels, ``[B, H, W]``."""
        return is_normal(target)


class MaskedBCE(nn.BCEWithLogitsLoss):
    """Binary cross-entropy of logits over the labels, in nats.

    Targets have the logits' shape and values from 0 to 1; NaN is a missing label. ValueError if the shapes differ.
    """

    def __init__(self) -> None:
        super().__init__()

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The mean over all targets except NaN."""
        _check_shapes(input, target)
        mask = self.labelled(target)
        target = target.where(mask, 0.0).to(input.dtype)
        return _mean(
            self.weights(target, mask) * binary_cross_entropy_with_logits(input, target, reduction="none"), mask
        )

    def weights(self, target: Tensor, mask: Tensor) -> Tensor:
        """The weight of each label."""
        return torch.ones_like(target)

    def labelled(self, target: Tensor) -> Tensor:
        """A mask of the labels, in the target's shape."""
        return is_label(target)


class BalancedBCE(MaskedBCE):
    """:class:`MaskedBCE` for rare positives, such as edges: positives have the weight ``positive``, negatives the rest.

    ``positive`` is from 0 to 1. None is the share of negatives among the batch's labels, so that positives and
    negatives have the same total weight; a batch with only one of them then has a loss of zero. ValueError for other
    values.

    Source: Xie & Tu 2015 (HED), equation 2; with a fixed 0.95 in Maninis et al. 2019 (ASTMT).
    """

    def __init__(self, positive: float | None = None) -> None:
        super().__init__()
        if positive is not None and not 0 <= positive <= 1:
            raise ValueError(
                f"positive={positive} must be from 0 to 1, or null for the share of negatives in the batch."
            )
        self.positive = positive

    def weights(self, target: Tensor, mask: Tensor) -> Tensor:
        """The weight of each label; a target between 0 and 1 is partly positive, partly negative."""
        positive: Any = self.positive
        if positive is None:
            positive = _mean(1 - target, mask)
        return positive * target + (1 - positive) * (1 - target)


class Focal(nn.Module):
    """Cross-entropy times ``(1 - p)^gamma``, with p the probability of the true class: hard examples count more.

    Binary, if the targets are real numbers 0 and 1 in the logits' shape (NaN if missing): positives have the weight
    ``alpha`` and negatives ``1 - alpha``, or both have the weight one if ``alpha`` is None. Multi-class, if the targets
    are integers ``[B, ...]`` (``ignore_index`` if missing) and the logits ``[B, C, ...]``; ``alpha`` must be None. The
    loss is the mean over the labels; the paper divides by the number of positives. ValueError for ``gamma`` below 0,
    ``alpha`` outside 0 to 1, or shapes that differ.

    Source: Lin et al. 2017, equations 4 and 5.
    """

    def __init__(self, gamma: float = 2.0, alpha: float | None = None, ignore_index: int = IGNORED) -> None:
        super().__init__()
        if gamma < 0:
            raise ValueError(f"gamma={gamma} must be 0 or more.")
        if alpha is not None and not 0 <= alpha <= 1:
            raise ValueError(f"alpha={alpha} must be from 0 to 1, or null.")
        self.gamma, self.alpha, self.ignore_index = gamma, alpha, ignore_index

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The loss, a scalar in nats."""
        mask = self.labelled(target)
        if target.is_floating_point():
            _check_shapes(prediction, target)
            alpha = -1.0 if self.alpha is None else self.alpha  # torchvision's value for no weighting
            return _mean(sigmoid_focal_loss(prediction, target.where(mask, 0.0), alpha, self.gamma), mask)
        if self.alpha is not None:
            raise ValueError(
                f"alpha={self.alpha} weighs positives against negatives; for class indices it must be null."
            )
        nats = cross_entropy(prediction, target, reduction="none", ignore_index=self.ignore_index)
        # 1 - p, clamped because a gamma below 1 has an infinite slope at zero.
        wrong = (-torch.expm1(-nats)).clamp_min(1e-12)
        return _mean(wrong**self.gamma * nats, mask)

    def labelled(self, target: Tensor) -> Tensor:
        """A mask of the labels, in the target's shape."""
        return is_label(target) if target.is_floating_point() else target != self.ignore_index


def is_label(target: Tensor, invalid: float | None = None) -> Tensor:
    """A mask in the target's shape: neither NaN nor ``invalid``."""
    mask = target.isnan().logical_not()
    return mask if invalid is None else mask & (target != invalid)


def is_normal(target: Tensor) -> Tensor:
    """A mask ``[B, H, W]`` of normals ``[B, 3, H, W]``: not the zero vector, and without NaN."""
    return (target != 0).any(1) & target.isnan().any(1).logical_not()


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    # A mask and not an index: shapes that depend on the data would wait for the device.
    return values.where(mask, 0.0).sum() / mask.sum()


def _check_shapes(prediction: Tensor, target: Tensor) -> None:
    if prediction.shape != target.shape:  # torch would broadcast, which is never meant here
        raise ValueError(f"the prediction {list(prediction.shape)} and the target {list(target.shape)} differ in shape")
