"""The model's parts on two samples, before anything is trained: a part that does not fit is named by a ConfigError."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from mtl.config.in_place import INSTEAD, in_place_error, is_same
from mtl.config.pairing import check_pairing
from mtl.config.remedies import given_width, remedy, wrong_width
from mtl.config.restored import has_lazy_parameters, restored
from mtl.data.labels import Labels, labels_of
from mtl.engine.chunks import chunk_shares, split_head
from mtl.errors import ConfigError, reason_of
from mtl.gradients.cut import Cut, position_axis, split_positions
from mtl.model import graph_tensors
from mtl.tasks import count_labels

log = logging.getLogger(__name__)

WITHOUT_GRADIENT = "leave out detach(), item(), argmax(), torch.no_grad() and numpy, through which none flows"


def describe_features(features: Any) -> dict[str, Any]:
    """The arguments of a head's constructor that the features show.

    Of ``[B, D]`` and ``[B, N, D]``: ``in_features`` = D. Of maps ``[B, C, H, W]``: ``in_channels`` = C. Of a list of
    maps: ``channels``, one number a level. A dict shows what its only tensor of floating point does, as tokens beside
    their mask.
    """
    if isinstance(features, Mapping):
        real = [own for own in features.values() if isinstance(own, Tensor) and own.is_floating_point()]
        return describe_features(real[0]) if len(real) == 1 else {}
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


def dry_run_backbone(backbone: Any, inputs: Any, frozen: bool = False) -> Any:
    """The features of two samples; those require grad that the backbone makes and trains.

    ConfigError for a backbone that fails, or gives no tensor; a warning where its features have no gradient, unless it
    is ``frozen``.
    """
    try:
        if has_lazy_parameters(backbone):
            with torch.no_grad():
                backbone.eval()(inputs)
            backbone.train()
        with restored(backbone):
            features = backbone.eval()(inputs)
    except Exception as error:
        words = reason_of(error)
        reason = f"cannot take inputs of shape {shape_of(inputs)}: {words}{_other_dtype(inputs)}"
        raise ConfigError(f"backbone: {words if isinstance(error, ValueError) else reason}") from error
    leaves = [leaf for leaf in pytree.tree_leaves(features) if isinstance(leaf, Tensor)]
    if not leaves:
        raise ConfigError(
            f"backbone ({type(backbone).__name__}) gives {shape_of(features)} where features are due: its forward must "
            "return a tensor, or a tuple, list or dict of tensors."
        )
    trained = not frozen and any(p.requires_grad for p in backbone.parameters())
    if trained and not any(leaf.requires_grad for leaf in leaves):
        log.warning(
            "backbone (%s) gives features without a gradient, so that nothing of it is trained: leave its detach() and "
            "torch.no_grad() out, or say freeze=[backbone]", type(backbone).__name__,
        )  # fmt: skip
    return pytree.tree_map_only(Tensor, lambda z: z.detach().requires_grad_(z.requires_grad), features)


def dry_run_reader(task: str, reader: Any, features: Any) -> Any:
    """What a reader makes of the common features of two samples."""
    read = _predict(f"architecture.reader({task}) ({type(reader).__name__})", reader, features)
    return pytree.tree_map_only(Tensor, torch.detach, read)


def _other_dtype(inputs: Any) -> str:
    """What to change about inputs that are no float32, in words; else empty."""
    leaves = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
    other = next((leaf.dtype for leaf in leaves if leaf.dtype != torch.float32), None)
    if other is None or any(leaf.dtype == torch.float32 for leaf in leaves):  # beside numbers others are masks or ids
        return ""
    change = "x.float() / 255" if other == torch.uint8 else "x.float()"
    return f"; the inputs are {other}, and images and numbers must be float32: return {change} from the data set"


def dry_run_task(
    task: Any, head: Any, features: Any, targets: Mapping[str, Any], given: Mapping[str, Any] | None = None
) -> Labels | None:
    """One head, its loss and its metrics on two samples, as the strategies run them. ConfigError for a part that fails.

    ``given`` are the arguments of the head in the configuration. Returns what the targets must look like; None where
    these samples have none.
    """
    name = f"heads.{task.name} ({type(head).__name__})"
    widths = given_width(f"heads.{task.name}", given or {}, describe_features(features))
    prediction = _predict(name, head, features, widths)
    if task.name not in targets:
        return None
    target = targets[task.name]
    pair = f"{name} with output of shape {shape_of(prediction)} and targets of shape {shape_of(target)}"
    _dry_run_loss(task, head, prediction, target, pair)
    _dry_run_metrics(task, head, pytree.tree_map_only(Tensor, torch.detach, prediction), target, pair)
    check_pairing(task, head, prediction, target)
    return labels_of(task.loss, prediction, target)


def _predict(name: str, head: Any, features: Any, widths: str = "") -> Any:
    """The head's prediction in evaluation; it also runs as in training, where in-place dropout would act."""
    if has_lazy_parameters(head):
        with torch.no_grad():
            _run_head(name, head.eval(), features, widths)
        head.train()
    with restored(head):
        prediction = _run_head(name, head.eval(), features, widths)
        _run_head(name, head.train(), two_samples(features), widths)
    leaves = [leaf for leaf in pytree.tree_leaves(prediction) if isinstance(leaf, Tensor)]
    if leaves and not any(leaf.requires_grad for leaf in leaves):
        raise ConfigError(f"{name} gives a prediction without a gradient: {WITHOUT_GRADIENT}.")
    if hasattr(prediction, "numel") and prediction.numel() == 0:
        raise ConfigError(
            f"{name} gives an empty prediction of shape {shape_of(prediction)}: its width must be 1 or more."
        )
    return prediction


def _run_head(name: str, head: Any, features: Any, widths: str = "") -> Any:
    own = pytree.tree_map_only(Tensor, torch.clone, features)
    try:
        prediction = head(cut := Cut(own).features)
    except Exception as error:
        if sentence := in_place_error(name, head, features):
            raise ConfigError(sentence) from error
        reason = f"{widths}." if widths else reason_of(error)
        raise ConfigError(
            f"{name} cannot take the backbone's features of shape {shape_of(features)}: {reason}"
        ) from error
    if not is_same(cut, features):
        raise ConfigError(f"{name} changes the backbone's features, which the other heads read too: {INSTEAD}.")
    return prediction


def _dry_run_loss(task: Any, head: Any, prediction: Any, target: Any, pair: str) -> None:
    named = f"losses.{task.name} ({type(task.loss).__name__})"
    own = pytree.tree_map_only(Tensor, torch.clone, (prediction, target))
    try:
        with restored(task.loss), warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*target size.*")  # torch would broadcast, and learn nonsense
            loss = task.loss(*own)
    except Exception as error:
        if words := wrong_width(task, head, prediction, target, pair):
            raise ConfigError(words) from error
        advice = remedy(task, head, prediction, target)
        raise ConfigError(f"{named} does not fit {pair}: {f'{advice}.' if advice else reason_of(error)}") from error
    _check_value(f"losses.{task.name}", loss)
    trained = [leaf for leaf in pytree.tree_leaves(prediction) if isinstance(leaf, Tensor) and leaf.requires_grad]
    if trained and not loss.requires_grad and loss != 0:  # a loss may give a plain 0 where it finds no label
        raise ConfigError(f"{named} gives a number without a gradient: {WITHOUT_GRADIENT}.")
    if not is_same(own, (prediction, target)):
        raise ConfigError(f"{named} changes its prediction or its target, which the metrics read too: {INSTEAD}.")


def _check_value(key: str, loss: Any) -> None:
    """ConfigError unless a loss is one real number, as a tensor without axes."""
    if not isinstance(loss, Tensor):
        raise ConfigError(f"{key} must give a tensor with one number, but gives a {type(loss).__name__}.")
    if loss.numel() != 1:
        raise ConfigError(f"{key} must give one number, but gives {shape_of(loss)}; use reduction=mean.")
    if loss.dim():
        raise ConfigError(f"{key} must give a number without axes, but gives {shape_of(loss)}; return loss.mean().")
    if not loss.is_floating_point():
        raise ConfigError(f"{key} must give a real number, but gives {loss.dtype}, which has no gradient.")


def _dry_run_metrics(task: Any, head: Any, prediction: Any, target: Any, pair: str) -> None:
    """Each metric on the two samples, twice: some have no value for a single sample with a label."""
    others = "" if task.own_metrics else f" (+metrics.{task.name} names others, and +metrics.{task.name}={{}} none)"
    if words := wrong_width(task, head, prediction, target, pair):
        raise ConfigError(words)
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
            raise ConfigError(f"{key} does not fit {pair}: {reason_of(error)}{others}") from error
        if not hasattr(value, "numel") or value.numel() != 1:
            kind = ", which is no tensor" if not hasattr(value, "numel") else ""
            if getattr(metric, "average", "") in ("none", None):
                kind = "; use another average than none"
            raise ConfigError(f"{key} must give one number, but gives {shape_of(value)}{kind}{others}.")
        metric.reset()


def dry_run_chunks(task: Any, head: Any, features: Any, target: Any, count: int) -> None:
    """Compare a head and its loss on ``count`` slices of the positions with the same on all positions at once.

    The numbers agree for a head that treats every position alone and a loss that is the mean over its labels.
    ConfigError where they differ. ``target`` is None where the samples have no labels.
    """
    key = f"strategy.token_chunks={count}"
    if not isinstance(features, Tensor) or features.dim() not in (3, 4):
        raise ConfigError(
            f"{key} needs features that are one tensor [B, T, D] or [B, C, H, W]; they are {shape_of(features)}."
        )
    positions = features.shape[position_axis(features)]
    if count > positions:
        raise ConfigError(f"{key} must be at most {positions}, the positions of the features {shape_of(features)}.")
    whole, parts = _predict_by_slices(key, f"heads.{task.name} ({type(head).__name__})", head, features, count)
    if target is None:
        return
    if not isinstance(target, Tensor) or target.dim() < 2 or target.shape[position_axis(target)] % positions:
        raise ConfigError(
            f"{key}: the targets of {task.name}, {shape_of(target)}, do not have one or more labels for each of the "
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
            raise ConfigError(f"{key}: {name} cannot take a slice of the positions: {reason_of(error)}") from error
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


def shape_of(value: Any) -> str:
    """The shape of a tensor or of each one in a nesting, in words; the type of anything else."""
    if hasattr(value, "shape"):
        return str(list(value.shape))
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {shape_of(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "(" + ", ".join(map(shape_of, value)) + ")"
    return type(value).__name__
