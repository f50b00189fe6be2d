"""The model's parts on two samples, before anything is trained: a part that does not fit is named by a ConfigError."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from mtl.config.in_place import INSTEAD, in_place_error, is_same
from mtl.config.pairing import check_pairing
from mtl.config.restored import has_lazy_parameters, restored
from mtl.data.labels import Labels, labels_of
from mtl.engine.chunks import chunk_shares, split_head
from mtl.errors import ConfigError, first_line
from mtl.gradients.cut import Cut, position_axis, split_positions
from mtl.model import graph_tensors
from mtl.tasks import count_labels


def describe_features(features: Any) -> dict[str, Any]:
    """The arguments of a head's constructor that the features show.

    Of ``[B, D]`` and ``[B, N, D]``: ``in_features`` = D. Of maps ``[B, C, H, W]``: ``in_channels`` = C. Of a list of
    maps: ``channels``, one number a level.
    """
    if isinstance(features, Tensor):
        return {"in_channels": features.shape[1]} if features.dim() == 4 else {"in_features": features.shape[-1]}
    if isinstance(features, list | tuple) and all(isinstance(f, Tensor) and f.dim() == 4 for f in features):
        return {"channels": [f.shape[1] for f in features]}
    return {}


def two_samples(values: Any) -> Any:
    """The same for two samples at least: statistics of a batch need more than one."""
    leaves = [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor) and leaf.dim()]
    if any(len(leaf) != 1 for leaf in leaves):
        return values
    return pytree.tree_map_only(Tensor, lambda leaf: torch.cat([leaf, leaf]) if leaf.dim() else leaf, values)


def dry_run_backbone(backbone: Any, inputs: Any) -> Any:
    """The features of two samples; those require grad that the backbone makes and trains."""
    try:
        if has_lazy_parameters(backbone):
            with torch.no_grad():
                backbone.eval()(inputs)
            backbone.train()
        with restored(backbone):
            features = backbone.eval()(inputs)
        return pytree.tree_map_only(Tensor, lambda z: z.detach().requires_grad_(z.requires_grad), features)
    except Exception as error:
        words = first_line(error)
        reason = words if isinstance(error, ValueError) else f"cannot take inputs of shape {_shape(inputs)}: {words}"
        raise ConfigError(f"backbone: {reason}") from error


def dry_run_reader(task: str, reader: Any, features: Any) -> Any:
    """What a reader makes of the common features of two samples."""
    read = _predict(f"architecture.reader({task}) ({type(reader).__name__})", reader, features)
    return pytree.tree_map_only(Tensor, torch.detach, read)


def dry_run_task(task: Any, head: Any, features: Any, targets: Mapping[str, Any]) -> Labels | None:
    """One head, its loss and its metrics on two samples, as the strategies run them. ConfigError for a part that fails.

    Returns what the targets must look like; None where these samples have none.
    """
    name = f"heads.{task.name} ({type(head).__name__})"
    prediction = _predict(name, head, features)
    if task.name not in targets:
        return None
    target = targets[task.name]
    pair = f"{name} with output of shape {_shape(prediction)} and targets of shape {_shape(target)}"
    _dry_run_loss(task, prediction, target, pair)
    _dry_run_metrics(task, pytree.tree_map_only(Tensor, torch.detach, prediction), target, pair)
    check_pairing(task, head, prediction, target)
    return labels_of(task.loss, prediction, target)


def _predict(name: str, head: Any, features: Any) -> Any:
    """The head's prediction in evaluation; it also runs as in training, where in-place dropout would act."""
    if has_lazy_parameters(head):
        with torch.no_grad():
            _run_head(name, head.eval(), features)
        head.train()
    with restored(head):
        prediction = _run_head(name, head.eval(), features)
        _run_head(name, head.train(), two_samples(features))
    if hasattr(prediction, "numel") and prediction.numel() == 0:
        raise ConfigError(
            f"{name} gives an empty prediction of shape {_shape(prediction)}: its width must be 1 or more."
        )
    return prediction


def _run_head(name: str, head: Any, features: Any) -> Any:
    own = pytree.tree_map_only(Tensor, torch.clone, features)
    try:
        prediction = head(cut := Cut(own).features)
    except Exception as error:
        reason = in_place_error(name, head, features)
        reason = (
            reason or f"{name} cannot take the backbone's features of shape {_shape(features)}: {first_line(error)}"
        )
        raise ConfigError(reason) from error
    if not is_same(cut, features):
        raise ConfigError(f"{name} changes the backbone's features, which the other heads read too: {INSTEAD}.")
    return prediction


def _dry_run_loss(task: Any, prediction: Any, target: Any, pair: str) -> None:
    named = f"losses.{task.name} ({type(task.loss).__name__})"
    own = pytree.tree_map_only(Tensor, torch.clone, (prediction, target))
    try:
        with restored(task.loss), warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*target size.*")  # torch would broadcast, and learn nonsense
            loss = task.loss(*own)
    except Exception as error:
        raise ConfigError(f"{named} does not fit {pair}: {first_line(error)}") from error
    if loss.numel() != 1:
        raise ConfigError(f"losses.{task.name} must give one number, but gives {_shape(loss)}; use reduction=mean.")
    if not is_same(own, (prediction, target)):
        raise ConfigError(f"{named} changes its prediction or its target, which the metrics read too: {INSTEAD}.")


def _dry_run_metrics(task: Any, prediction: Any, target: Any, pair: str) -> None:
    """Each metric on the two samples, twice: some have no value for a single sample with a label."""
    remedy = "" if task.own_metrics else f" (+metrics.{task.name} names others, and +metrics.{task.name}={{}} none)"
    if task.own_metrics and not count_labels(task, target):
        return
    for name, metric in task.metrics.items():
        alone = replace(task, metrics={name: metric})
        key = f"The metric {task.name}/{name}"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # two samples lack most classes
                for _ in range(2):
                    alone.update_metrics(prediction, target)
                value = metric.compute()
        except Exception as error:
            raise ConfigError(f"{key} does not fit {pair}: {first_line(error)}{remedy}") from error
        if not hasattr(value, "numel") or value.numel() != 1:
            raise ConfigError(f"{key} must give one number, but gives {_shape(value)}{remedy}.")
        metric.reset()


def dry_run_chunks(task: Any, head: Any, features: Any, target: Any, count: int) -> None:
    """Compare a head and its loss on ``count`` slices of the positions with the same on all positions at once.

    The numbers agree for a head that treats every position alone and a loss that is the mean over its labels.
    ConfigError where they differ. ``target`` is None where the samples have no labels.
    """
    key = f"strategy.token_chunks={count}"
    if not isinstance(features, Tensor) or features.dim() not in (3, 4):
        raise ConfigError(
            f"{key} needs features that are one tensor [B, T, D] or [B, C, H, W]; they are {_shape(features)}."
        )
    positions = features.shape[position_axis(features)]
    if count > positions:
        raise ConfigError(f"{key} must be at most {positions}, the positions of the features {_shape(features)}.")
    whole, parts = _predict_by_slices(key, f"heads.{task.name} ({type(head).__name__})", head, features, count)
    if target is None:
        return
    if not isinstance(target, Tensor) or target.dim() < 2 or target.shape[position_axis(target)] % positions:
        raise ConfigError(
            f"{key}: the targets of {task.name}, {_shape(target)}, do not have one or more labels for each of the "
            f"{positions} positions of the features."
        )
    for labels in (target, _with_gap(task, target), _with_other_classes(task, whole, target)):
        if not count_labels(task, labels):
            continue
        shares = chunk_shares([task], {task.name: labels}, positions, count)[task.name]
        pieces = zip(parts, split_positions(labels, count, positions), shares, strict=True)
        total = sum(share * task.loss(part, own) for part, own, share in pieces if share)
        if not _close(total, task.loss(whole, labels)):
            raise ConfigError(
                f"{key}: losses.{task.name} ({type(task.loss).__name__}) is not the mean over the labels, so that the "
                "losses of slices do not add up to it; use token_chunks=1."
            )


def _predict_by_slices(key: str, name: str, head: Any, features: Tensor, count: int) -> tuple[Tensor, list[Tensor]]:
    """The predictions of a head like this one, from all positions and from their slices; ConfigError if they differ."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        head = _without_dropout(copy.deepcopy(head, graph_tensors(head)).train())
        for parameter in head.parameters():  # a parameter that starts at zero would hide a difference
            parameter += 0.1 * torch.randn_like(parameter)
        whole = head(features)
        try:
            mix, read = split_head(head)
            parts = [read(part) for part in Cut(mix(features)).chunks(count)]
            same = all(map(_close, parts, split_positions(whole, count)))
        except Exception as error:
            raise ConfigError(f"{key}: {name} cannot take a slice of the positions: {first_line(error)}") from error
    if not same:
        raise ConfigError(
            f"{key}: {name} predicts something else from slices of the positions than from all of them, so that its "
            "gradient would differ; use token_chunks=1, or a head without attention, batch statistics or "
            "kernels over positions."
        )
    return whole, parts


def _without_dropout(head: Any) -> Any:
    for module in head.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.eval()
    return head


def _with_gap(task: Any, target: Tensor) -> Tensor:
    """The target without labels in the first half of its positions, where the loss has an ignore_index."""
    if target.is_floating_point() or not hasattr(task.loss, "ignore_index"):
        return target
    target = target.clone()
    split_positions(target, 2)[0].fill_(task.loss.ignore_index)
    return target


def _with_other_classes(task: Any, prediction: Any, target: Tensor) -> Tensor:
    """The target with each class in turn, where the loss has classes: those of two samples may weigh the same."""
    labels = labels_of(task.loss, prediction, target)
    if labels is None or labels.floating or labels.highest is None:
        return target
    classes = torch.arange(target.numel(), device=target.device).view(target.shape) % (labels.highest + 1)
    return classes.to(target.dtype).where((target >= 0) & (target <= labels.highest), target)


def _close(a: Any, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-4 * b.abs().max().item(), equal_nan=True)


def _shape(value: Any) -> str:
    if hasattr(value, "shape"):
        return str(list(value.shape))
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_shape(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "(" + ", ".join(map(_shape, value)) + ")"
    return type(value).__name__
