"""What to change where a head, its loss and its targets do not fit together, for the error that says so."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

# The width of the features as constructors call it, and the features that have it.
READ = {
    "in_features": "features [B, D] (of timm's, by backbone.features=pooled)",
    "in_channels": "maps [B, C, H, W]",
    "channels": "a list of maps (of timm's, by backbone.features=pyramid)",
}
WIDTHS = ("out_features", "out_channels", "num_classes")  # what constructors call the width of a head's output


def remedy(task: Any, head: nn.Module, prediction: Any, target: Any) -> str | None:
    """What to change where the loss of ``task`` does not take this prediction and this target; None if unknown."""
    if prediction is None:
        return f"the forward of heads.{task.name} must return its prediction"
    if not type(task.loss).__module__.startswith(("torch.", "mtl.")):  # only its author knows what it takes
        return None
    if not isinstance(prediction, Tensor):
        kind = type(prediction).__name__
        return f"the head must return one tensor, or the loss be one of yours that takes a {kind}"
    if not isinstance(target, Tensor):
        return _of_other_targets(target)
    if target.dim() and (not prediction.dim() or len(prediction) != len(target)):
        return (
            f"the first axis of the output must be the {len(target)} samples; the backbone or the head loses it, as by "
            "mean(0) or squeeze()"
        )
    if takes_classes(task.loss):
        return _of_classes(task, head, prediction, target)
    return _of_numbers(task, head, prediction, target)


def wrong_width(task: Any, head: nn.Module, prediction: Any, target: Any, pair: str) -> str | None:
    """The sentence for a head that gives another number of classes than a metric of its task counts; None if equal.

    ``pair`` names the head and the shapes.
    """
    if not isinstance(prediction, Tensor) or not isinstance(target, Tensor) or not takes_classes(task.loss):
        return None
    if prediction.dim() < 2 or prediction.dim() != target.dim() + (not target.is_floating_point()):
        return None  # the head predicts something else than one logit a class
    width = prediction.shape[getattr(task.loss, "class_axis", 1)]
    for name, metric in task.metrics.items():
        count = _classes(metric)
        if count in (None, width):
            continue
        if task.own_metrics:
            named = f"metrics.{task.name}.{name}.num_classes={count}"
            return f"{named} does not fit {pair}: both must be the number of classes."
        source = f"the number of classes that the data set has for {task.name}, as its metric {task.name}/{name} says"
        return f"{_width(task, head)} must be {count}, {source}; now it is {pair}."
    return None


def takes_classes(loss: Any) -> bool:
    """Whether a loss takes logits and class indices: torch's, and those that follow them by an ignore_index."""
    return isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss) or hasattr(loss, "ignore_index")


def _of_other_targets(target: Any) -> str:
    """For targets that are collated to something else than a tensor."""
    if isinstance(target, list | tuple) and target and isinstance(target[0], str):
        return f"a target is the text {target[0]!r}; give the number of its class, counted from 0"
    return f"the targets are a {type(target).__name__}; give each as one tensor, as torch.tensor([0.5, 1.0])"


def _of_classes(task: Any, head: nn.Module, prediction: Tensor, target: Tensor) -> str | None:
    if target.is_floating_point():
        if target.dim() < prediction.dim() and (target == target.round()).all():
            return "a class is a whole number: give it as int or torch.long"
        return _use_numbers(task, head, target)
    if prediction.dim() < 2:
        return "the head must give one logit a class, [B, classes]"
    if target.shape == prediction.shape:
        return "give the index of the class alone, or as probabilities real numbers"
    if target.dim() == prediction.dim() and target.shape[1] == 1:
        return "a class is one whole number: give each target the shape [], not [1]"
    if target.dim() < prediction.dim() - 1:
        return (
            "the head predicts at every position: choose one that pools them, as attention_pool does, or "
            "backbone.features=pooled"
        )
    if not target.numel() or target.dim() != prediction.dim() - 1:
        return None
    least, most = int(target.min()), int(target.max())
    if least < 0 and least != getattr(task.loss, "ignore_index", None):
        return f"a target is {least}, and classes are counted from 0; a missing label is -100"
    width = prediction.shape[getattr(task.loss, "class_axis", 1)]
    if most < width:
        return None
    return f"a target is {most}, and classes count from 0, so that {_width(task, head)} must be {most + 1} or more"


def _of_numbers(task: Any, head: nn.Module, prediction: Tensor, target: Tensor) -> str | None:
    """For a loss that compares prediction and target number by number."""
    if prediction.shape == target.shape:
        return _of_values(task, prediction, target)
    known = next(filter(None, map(_classes, task.metrics.values())), None)
    whole = not target.is_floating_point() and target.dim() == prediction.dim() - 1
    if whole and (known is not None or prediction.shape[1] > 1):
        width = "" if known in (None, prediction.shape[1]) else f" and {_width(task, head)}={known}"
        return f"the targets are classes: use losses.{task.name}._target_=torch.nn.CrossEntropyLoss{width}"
    if prediction.shape == (*target.shape, 1):
        return "give each target the shape [1], as torch.tensor([0.5]), or let the head squeeze its last axis"
    if target.shape == (*prediction.shape, 1):
        return "give each target the shape [], or leave the head's squeeze out"
    if prediction.dim() == 2 and target.dim() == 1:
        return f"{_width(task, head)} must be 1, and each target have the shape [1], as torch.tensor([0.5])"
    if prediction.dim() == target.dim() and prediction.shape[2:] == target.shape[2:]:
        count = target.shape[1]
        return f"{_width(task, head)}={prediction.shape[1]} must be {count}: so many numbers has a target"
    return None


def _of_values(task: Any, prediction: Tensor, target: Tensor) -> str | None:
    """For a prediction and a target of one shape."""
    if not target.is_floating_point() and not isinstance(task.loss, nn.MSELoss):
        return "the targets are whole numbers, and this loss takes real ones: give them as float"
    if isinstance(task.loss, nn.BCELoss) and not ((prediction >= 0) & (prediction <= 1)).all():
        return f"it takes probabilities: use losses.{task.name}._target_=torch.nn.BCEWithLogitsLoss for logits"
    return None


def _use_numbers(task: Any, head: nn.Module, target: Tensor) -> str:
    name, known = task.name, target[target.isnan().logical_not()]
    binary = len(known) and ((known == 0) | (known == 1)).all()
    loss = "MaskedBCE" if binary else f"MaskedL2 +losses.{name}.invalid=null"
    use = f"use losses.{name}._target_=mtl.losses.{loss} and {_width(task, head)}="
    kind = "binary labels" if binary else "numbers"
    shape = f"{target.shape[1]}" if target.dim() > 1 else "1, and give each target the shape [1]"
    return f"the targets are {kind} and no classes: {use}{shape}"


def _classes(metric: Any) -> int | None:
    count = getattr(metric, "num_classes", None)
    return count if isinstance(count, int) else None


def _width(task: Any, head: nn.Module) -> str:
    """What sets the width of a head's output, by its key where the constructor says it."""
    parameters = inspect.signature(type(head).__init__).parameters
    name = next((name for name in WIDTHS if name in parameters), None)
    return f"the width of heads.{task.name}" if name is None else f"heads.{task.name}.{name}"


def unread(key: str, name: str, target: Any, given: Any, known: Mapping[str, Any], features: Any) -> str | None:
    """The sentence for a head whose constructor needs a width of features of another kind; None if it has all.

    ``name`` is that of the constructor ``target``, and ``features`` what the backbone gives, in words.
    """
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):
        return None
    for width, kind in READ.items():
        if (
            width in parameters
            and parameters[width].default is inspect.Parameter.empty
            and width not in {*given, *known}
        ):
            return (
                f"{key}: {name} needs {width}, which the configuration does not give and the backbone's features "
                f"{features} do not have: choose a head that reads those, or a backbone that gives {kind}."
            )
    return None


def given_width(key: str, given: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    """What to leave out where a configuration gives a head other widths than its features have; else empty."""
    wrong = [name for name in READ if name in known and given.get(name) not in (None, known[name])]
    said = (
        f"{key}.{name}={given[name]} is not their {known[name]}; leave it out, and it is filled in" for name in wrong
    )
    return next(said, "")
