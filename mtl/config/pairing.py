"""Predictions, targets, losses and metrics that run together and mean something else than they seem."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mtl.errors import ConfigError
from mtl.losses import MaskedL1, MaskedPoisson

log = logging.getLogger(__name__)

NUMBERS = nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, MaskedL1  # losses of numbers; MaskedL2 is a MaskedL1
COUNTS = nn.PoissonNLLLoss, MaskedPoisson


def check_pairing(task: Any, head: nn.Module, prediction: Any, target: Any) -> None:
    """Try a task's loss and metrics on made-up numbers in the shapes of its prediction and its target.

    ConfigError for a loss or a metric that compares every sample with every other one, for a metric that takes
    probabilities for something else, and for log-probabilities that are none. A warning for probabilities where logits
    are expected, and for several classes at once where one is.
    """
    if not isinstance(prediction, Tensor) or not isinstance(target, Tensor) or not target.dim():
        return
    prediction, loss = prediction.detach(), task.loss
    _check_broadcasting(f"losses.{task.name} ({type(loss).__name__})", _value_of_loss(loss), prediction, target)
    for name, metric in task.metrics.items():
        _check_broadcasting(f"The metric {task.name}/{name}", _value_of(metric), prediction, target)
    if not isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss | nn.BCEWithLogitsLoss):
        return
    _check_scale(task.name, loss, head, prediction)
    if isinstance(loss, nn.CrossEntropyLoss) and target.is_floating_point() and target.shape == prediction.shape:
        _check_probabilities(task, target)


def check_kind(task: Any, kind: str | None) -> None:
    """A warning for a loss of numbers on labels, or the other way round, where the data set knows the ``kind``.

    Both may be of one shape: then it runs, and learns something else. ConfigError for a loss of counts on numbers that
    are standardised, of which some are below 0 for sure.
    """
    loss, name = task.loss, type(task.loss).__name__
    own = f"losses.{task.name}._target_=mtl.losses"
    if kind == "number" and isinstance(loss, COUNTS):
        raise ConfigError(
            f"losses.{task.name} ({name}) takes counts from 0 on, and the targets of {task.name} are numbers, "
            "which are standardised; data.kinds says that their column is a count, and leaves them as they are."
        )
    if kind == "labels" and isinstance(loss, NUMBERS):
        log.warning(
            "the targets of %s are labels, and %s takes numbers; %s.MaskedBCE takes labels", task.name, name, own
        )
    if kind == "number" and isinstance(loss, nn.BCEWithLogitsLoss | nn.BCELoss):
        log.warning(
            "the targets of %s are numbers, and %s takes labels; %s.MaskedL2 takes numbers", task.name, name, own
        )


def _value_of_loss(loss: Any) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda prediction, target: copy.deepcopy(loss)(prediction, target)  # a loss may count its calls


def _value_of(metric: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """A metric as a function of one batch."""

    def value(prediction: Tensor, target: Tensor) -> Tensor:
        own = metric.clone()
        own.reset()
        own.update(prediction, target)
        return torch.as_tensor(own.compute())

    return value


def _quietly(function: Callable[[Tensor, Tensor], Tensor], prediction: Tensor, target: Tensor) -> float | None:
    """A number, or None where there is none; nothing is drawn from the global generator."""
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), torch.no_grad():
            warnings.simplefilter("ignore")
            value = function(prediction, target)
        return float(value) if torch.isfinite(value).all() and value.numel() == 1 else None
    except Exception:  # what does not run is the dry run's affair
        return None


def _check_broadcasting(
    name: str, function: Callable[[Tensor, Tensor], Tensor], prediction: Tensor, target: Tensor
) -> None:
    """ConfigError where shapes of other axes give the same as both repeated to one shape, [B, 1] and [B] to [B, B]."""
    if prediction.dim() == target.dim() or len(target) < 2 or len(prediction) != len(target):
        return
    # Of a number of samples that no other axis has: two samples of two classes would pass for pairs.
    count = 2 + max(prediction.shape[1:] + target.shape[1:], default=1)
    outputs, labels_shape = (torch.Size([count, *x.shape[1:]]) for x in (prediction, target))
    try:
        shape = torch.broadcast_shapes(outputs, labels_shape)
    except RuntimeError:  # there is no such shape
        return
    generator = torch.Generator().manual_seed(0)
    made = torch.rand(outputs, generator=generator)
    # Neighbours differ, so that a mean over all pairs is not one over the samples; 0 and 1 are labels of every kind.
    labels = (torch.arange(labels_shape.numel()) % 2).reshape(labels_shape).to(target.dtype)
    if target.is_floating_point():
        labels = torch.rand(labels_shape, generator=generator).to(target.dtype)
    alone = _quietly(function, made, labels)
    repeated = _quietly(function, made.expand(shape), labels.expand(shape))
    if alone == _quietly(function, made, torch.zeros_like(labels)):  # the target does not count
        return
    if alone is not None and repeated is not None and abs(alone - repeated) <= 1e-5 * max(1e-3, abs(repeated)):
        raise ConfigError(
            f"{name} takes output of shape {list(prediction.shape)} and targets of shape {list(target.shape)} for "
            f"{list(shape)}, and so compares every sample with others; give both one shape."
        )


def _check_scale(task: str, loss: nn.Module, head: nn.Module, prediction: Tensor) -> None:
    name = f"losses.{task} ({type(loss).__name__})"
    axis = getattr(loss, "class_axis", 1)
    if isinstance(loss, nn.NLLLoss):
        if not _sums_to_one(prediction.exp(), axis):
            raise ConfigError(
                f"{name} takes log-probabilities, and the head gives none; use torch.nn.CrossEntropyLoss."
            )
    elif isinstance(loss, nn.CrossEntropyLoss):
        if prediction.shape[axis] > 1 and (prediction >= 0).all() and _sums_to_one(prediction, axis):
            log.warning("%s takes logits, and the head gives probabilities: leave its softmax out", name)
        elif prediction.shape[axis] == 1:
            log.warning("%s is 0 whatever is predicted, for the head gives one class", name)
    elif isinstance([*head.modules()][-1], nn.Sigmoid):
        log.warning("%s takes logits, and the head ends in a sigmoid: leave that out", name)


def _check_probabilities(task: Any, target: Tensor) -> None:
    """Metrics must know the best prediction of probabilities from the worst."""
    known = target.isnan().logical_not().all(1)
    sums = target.sum(1)[known]
    if len(sums) and not torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
        log.warning(
            "the targets of %s sum to %.4g over the classes, and not to 1: CrossEntropyLoss takes the probabilities "
            "of classes of which one is true, and mtl.losses.MaskedBCE takes several at once",
            task.name, sums.flatten()[0].item(),
        )  # fmt: skip
    count = target.shape[1]
    # One sample of each class.
    labels = torch.eye(count).reshape(count, count, *[1] * (target.dim() - 2)).expand(-1, -1, *target.shape[2:])
    for name, metric in task.metrics.items():
        best, worst = (_quietly(_value_of(metric), sign * (40 * labels - 20), labels) for sign in (1, -1))
        if best is not None and best == worst:
            raise ConfigError(
                f"The metric {task.name}/{name} ({type(metric).__name__}) does not take the targets of {task.name} for "
                "probabilities: the best and the worst prediction have one value; use mtl.metrics.classification, or "
                "class indices as targets."
            )


def _sums_to_one(probabilities: Tensor, axis: int) -> bool:
    sums = probabilities.float().sum(axis)
    return torch.allclose(sums, torch.ones_like(sums), atol=1e-4)
