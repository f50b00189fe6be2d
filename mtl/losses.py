"""Losses that torch lacks.

All are means over the labels that are there. One with ``labelled(target) -> mask`` says itself where that is; without
any label it is not a number, and the training never asks: see present_tasks in mtl.model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cosine_similarity, cross_entropy
from torchvision.ops import sigmoid_focal_loss

from mtl.data.labels import IGNORED


class TokenCrossEntropy(nn.CrossEntropyLoss):
    """Cross-entropy with the classes on the last axis: logits ``[..., V]``, targets ``[...]`` -> the mean, in nats.

    Takes the arguments of torch's, which wants the classes on the second axis: there, logits ``[B, V, T]`` would cost a
    transposed copy of themselves.
    """

    class_axis = -1  # of the logits; it is 1 for torch's losses

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The mean over all targets but those that are ``ignore_index``."""
        return super().forward(input.flatten(0, -2), target.flatten())


class MaskedL1(nn.Module):
    """The mean absolute error over the labels: prediction and target of one shape, as depth ``[B, 1, H, W]``.

    A target that is NaN or ``invalid`` is no label; ``invalid=None`` where every number is one. ValueError for shapes
    that differ.
    """

    def __init__(self, invalid: float | None = 0.0) -> None:
        super().__init__()
        self.invalid = invalid

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """One number, in the target's unit."""
        _check_shapes(prediction, target)
        mask = self.labelled(target)
        # An invalid target may be NaN, and NaN times zero still is: it goes before the error is taken.
        return _mean(self.error(prediction, target.where(mask, 1.0)), mask)

    def error(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Element by element."""
        return (prediction - target).abs()

    def labelled(self, target: Tensor) -> Tensor:
        """Where a label is, in the target's shape."""
        return is_label(target, self.invalid)


class MaskedL2(MaskedL1):
    """The mean squared error over the labels; see MaskedL1."""

    def error(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Element by element, in the target's unit squared."""
        return (prediction - target).square()


class InverseDepth(MaskedL1):
    """The mean of ``|1 / prediction - 1 / target|`` over the labels: what is near counts more; see MaskedL1.

    Both are depths, so that the metrics of depth hold for it as well. Below ``nearest``, in the target's unit,
    ``1 / x`` goes on as its tangent: it stays finite and falling, and a prediction of zero or less finds back.
    ValueError for a ``nearest`` of zero or less.

    Source: Kendall et al. 2018, section 4 (the L1 distance of inverse depths; there the head predicts the inverse).
    """

    def __init__(self, invalid: float | None = 0.0, nearest: float = 0.5) -> None:
        super().__init__(invalid)
        if nearest <= 0:
            raise ValueError(f"nearest={nearest} must be above 0.")
        self.nearest = nearest

    def error(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Element by element, in one over the target's unit."""
        return (self._inverse(prediction) - self._inverse(target)).abs()

    def _inverse(self, depth: Tensor) -> Tensor:
        bounded = depth.clamp_min(self.nearest)
        return 1 / bounded + (bounded - depth) / bounded.square()


class CosineNormals(nn.Module):
    """One minus the mean cosine between the predicted normals and the true ones: both ``[B, 3, H, W]``.

    Neither has to be of unit length. A true normal that is the zero vector or has a NaN is no label. ValueError for
    shapes that differ. Source: Eigen & Fergus 2015, section 3.2, in the form of Liu et al. 2019 (MTAN), equation 6.
    """

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """One number from 0 to 2."""
        _check_shapes(prediction, target)
        mask = self.labelled(target)
        return 1 - _mean(cosine_similarity(prediction, target.where(mask.unsqueeze(1), 1.0), dim=1), mask)

    def labelled(self, target: Tensor) -> Tensor:
        """Where a normal is: ``[B, H, W]``."""
        return is_normal(target)


class MaskedBCE(nn.BCEWithLogitsLoss):
    """Binary cross-entropy of logits over the labels, in nats: targets of the logits' shape, from 0 to 1, NaN for none.

    ValueError for shapes that differ.
    """

    def __init__(self) -> None:
        super().__init__()

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The mean over all targets but NaN."""
        _check_shapes(input, target)
        mask = self.labelled(target)
        target = target.where(mask, 0.0).to(input.dtype)
        return _mean(
            self.weights(target, mask) * binary_cross_entropy_with_logits(input, target, reduction="none"), mask
        )

    def weights(self, target: Tensor, mask: Tensor) -> Tensor:
        """What each label counts."""
        return torch.ones_like(target)

    def labelled(self, target: Tensor) -> Tensor:
        """Where a label is, in the target's shape."""
        return is_label(target)


class BalancedBCE(MaskedBCE):
    """MaskedBCE for rare positives, as edges: they count ``positive``, and negatives ``1 - positive``.

    ``positive`` from 0 to 1; None: the share of negatives among the batch's labels, so that both kinds count the same
    in sum. Then a batch with only one kind has the loss zero. ValueError for any other ``positive``.

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
        """What each label counts: a target between 0 and 1 is partly of either kind."""
        positive: Any = self.positive
        if positive is None:
            positive = _mean(1 - target, mask)
        return positive * target + (1 - positive) * (1 - target)


class Focal(nn.Module):
    """Cross-entropy times ``(1 - p)^gamma``, where p is the probability of the true class: what is hard counts more.

    Binary where the targets are real numbers 0 and 1 of the logits' shape, NaN for none; then positives count ``alpha``
    and negatives ``1 - alpha``, or both one for None. Of classes where they are whole numbers ``[B, ...]``,
    ``ignore_index`` for none, and the logits ``[B, C, ...]``; ``alpha`` must then be None. The mean is over the labels,
    where the paper divides by the number of positives. ValueError for a ``gamma`` below 0, an ``alpha`` outside 0 to 1,
    and shapes that do not go together.

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
        """One number, in nats."""
        mask = self.labelled(target)
        if target.is_floating_point():
            _check_shapes(prediction, target)
            alpha = -1.0 if self.alpha is None else self.alpha  # torchvision's sign for none
            return _mean(sigmoid_focal_loss(prediction, target.where(mask, 0.0), alpha, self.gamma), mask)
        if self.alpha is not None:
            raise ValueError(
                f"alpha={self.alpha} weighs positives against negatives; for targets of classes it is null."
            )
        nats = cross_entropy(prediction, target, reduction="none", ignore_index=self.ignore_index)
        # 1 - p; not below 1e-12, where a gamma under 1 has no finite slope.
        wrong = (-torch.expm1(-nats)).clamp_min(1e-12)
        return _mean(wrong**self.gamma * nats, mask)

    def labelled(self, target: Tensor) -> Tensor:
        """Where a label is, in the target's shape."""
        return is_label(target) if target.is_floating_point() else target != self.ignore_index


def is_label(target: Tensor, invalid: float | None = None) -> Tensor:
    """Where ``target`` is neither NaN nor ``invalid``, in its shape."""
    mask = target.isnan().logical_not()
    return mask if invalid is None else mask & (target != invalid)


def is_normal(target: Tensor) -> Tensor:
    """Where ``[B, 3, H, W]`` has a normal, neither the zero vector nor with a NaN in it: ``[B, H, W]``."""
    return (target != 0).any(1) & target.isnan().any(1).logical_not()


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    # By a mask and not by an index: the shapes do not depend on the data, and nothing waits for the device.
    return values.where(mask, 0.0).sum() / mask.sum()


def _check_shapes(prediction: Tensor, target: Tensor) -> None:
    if prediction.shape != target.shape:  # torch would broadcast, and learn nonsense
        raise ValueError(f"the prediction {list(prediction.shape)} and the target {list(target.shape)} differ in shape")
