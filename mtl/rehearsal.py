"""The model's parts on two samples, before anything is trained: what does not fit is a ConfigError that names it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mtl.config import ConfigError, first_line
from mtl.cut import Cut
from mtl.data.labels import Labels, labels_of


def describe_features(features: Any) -> dict[str, Any]:
    """The properties of the features that a head's constructor may name.

    Of ``[B, D]`` and ``[B, N, D]``: ``in_features`` = D. Of maps ``[B, C, H, W]``: ``in_channels`` = C. Of a list of
    maps: ``channels``, one number a level.
    """
    if isinstance(features, Tensor):
        return {"in_channels": features.shape[1]} if features.dim() == 4 else {"in_features": features.shape[-1]}
    if isinstance(features, list | tuple) and all(isinstance(f, Tensor) and f.dim() == 4 for f in features):
        return {"channels": [f.shape[1] for f in features]}
    return {}


def rehearse_backbone(backbone: Any, inputs: Any) -> Any:
    """The features of two samples."""
    training = backbone.training
    try:
        with torch.no_grad():
            return backbone.eval()(inputs)
    except Exception as error:
        words = first_line(error)
        reason = words if isinstance(error, ValueError) else f"cannot take inputs of shape {_shape(inputs)}: {words}"
        raise ConfigError(f"backbone: {reason}") from error
    finally:
        backbone.train(training)


def rehearse_task(task: Any, head: Any, features: Any, targets: Mapping[str, Any]) -> Labels | None:
    """One head and its loss on two samples, as the cut will run them, so that what does not fit is named.

    Returns what the targets must look like, where these have any.
    """
    training = head.training
    name = f"heads.{task.name} ({type(head).__name__})"
    try:
        prediction = head.eval()(Cut(features).features)
        with torch.random.fork_rng(devices=[]):  # as in training: in-place dropout cannot work on a leaf
            copy.deepcopy(head).train()(Cut(features).features)
    except Exception as error:
        raise ConfigError(
            f"{name} cannot take the backbone's features of shape {_shape(features)}: {first_line(error)}"
        ) from error
    finally:
        head.train(training)
    if hasattr(prediction, "numel") and prediction.numel() == 0:
        raise ConfigError(
            f"{name} gives an empty prediction of shape {_shape(prediction)}: its width must be 1 or more."
        )
    if task.name not in targets:
        return None
    target = targets[task.name]
    pair = f"{name} with output of shape {_shape(prediction)} and targets of shape {_shape(target)}"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*target size.*")  # torch would broadcast, and learn nonsense
            loss = task.loss(prediction, target)
    except Exception as error:
        raise ConfigError(
            f"losses.{task.name} ({type(task.loss).__name__}) does not fit {pair}: {first_line(error)}"
        ) from error
    if loss.numel() != 1:
        raise ConfigError(f"losses.{task.name} must give one number, but gives {_shape(loss)}; use reduction=mean.")
    for metric_name, metric in task.metrics.items():
        try:
            metric.update(prediction.detach(), target)
        except Exception as error:
            raise ConfigError(
                f"The metric {task.name}/{metric_name} does not fit {pair}: {first_line(error)}"
            ) from error
        value = metric.compute()
        if not hasattr(value, "numel") or value.numel() != 1:
            raise ConfigError(f"The metric {task.name}/{metric_name} must give one number, but gives {_shape(value)}.")
        metric.reset()
    return labels_of(task.loss, prediction, target)


def _shape(value: Any) -> str:
    if hasattr(value, "shape"):
        return str(list(value.shape))
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_shape(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "(" + ", ".join(map(_shape, value)) + ")"
    return type(value).__name__
