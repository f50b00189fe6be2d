"""What a task is, and where a batch has labels for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from mtl.data.labels import Labels


@dataclass
class Task:
    """A task: its name (its head's name in the model and its target's in the batch), loss and metrics.

    ``labels``: what its targets must look like, where that is known.
    """

    name: str
    loss: Callable[[Any, Any], Tensor]
    metrics: dict[str, Metric] = field(default_factory=dict)
    labels: Labels | None = None

    def to(self, device: torch.device) -> None:
        """Move what the loss and the metrics hold to ``device``."""
        for part in (self.loss, *self.metrics.values()):
            if isinstance(part, nn.Module):
                part.to(device)


def loss_modules(tasks: Sequence[Task]) -> nn.ModuleDict:
    """The losses that are modules, by task: they may hold parameters and buffers."""
    return nn.ModuleDict({task.name: task.loss for task in tasks if isinstance(task.loss, nn.Module)})


def present_tasks(tasks: Sequence[Task], targets: Mapping[str, Any]) -> list[Task]:
    """The tasks that this batch has a label for.

    A task is absent when its key is missing from ``targets``, or when where_labelled finds no label in its target. An
    absent task is left out of the step; it is not a zero gradient.
    """
    candidates = [task for task in tasks if task.name in targets]
    labelled = [where_labelled(task, targets[task.name]) for task in candidates]
    # One transfer for all the tasks that must be looked at, not one each.
    unknown = [mask.any() for mask in labelled if mask is not None]
    answers = iter(torch.stack(unknown).tolist() if unknown else [])
    return [task for task, mask in zip(candidates, labelled, strict=True) if (True if mask is None else next(answers))]


def label_counts(tasks: Sequence[Task], targets: Mapping[str, Any]) -> list[float]:
    """How many labels of each task are in this batch, 0 where there is none; see count_labels."""
    counts: list[Any] = []
    for task in tasks:
        target = targets.get(task.name)
        mask = None if target is None else where_labelled(task, target)
        if target is None:
            counts.append(0)
        elif mask is not None and (weights := _class_weights(task, target)) is not None:
            counts.append(weights[target.where(mask, 0)].where(mask, 0.0).sum().item())
        elif mask is None:
            counts.append(target.numel() if isinstance(target, Tensor) else len(target))
        else:
            counts.append(mask.sum())
    # One transfer for all the tasks that must be looked at, not one each.
    unknown = [count for count in counts if isinstance(count, Tensor)]
    answers = iter(torch.stack(unknown).tolist() if unknown else [])
    return [next(answers) if isinstance(count, Tensor) else count for count in counts]


def where_labelled(task: Task, target: Any) -> Tensor | None:
    """Where ``target`` holds a label, as a mask: what its loss's ``labelled`` says, where it has such a method.

    Otherwise neither NaN nor the loss's ``ignore_index``, in the target's shape. None: everywhere, or it is no tensor
    and the loss's own business.
    """
    if not isinstance(target, Tensor):
        return None
    labelled = getattr(task.loss, "labelled", None)
    if labelled is not None:
        return labelled(target)
    if target.is_floating_point():
        return target.isnan().logical_not()
    ignore_index = getattr(task.loss, "ignore_index", None)
    return None if ignore_index is None else target != ignore_index


def _class_weights(task: Task, target: Tensor) -> Tensor | None:
    """What each class counts in the mean that torch's losses of classes are, where they do not count the same."""
    by_class = isinstance(task.loss, nn.CrossEntropyLoss | nn.NLLLoss) and not target.is_floating_point()
    return getattr(task.loss, "weight", None) if by_class else None


def count_labels(task: Task, target: Any) -> float:
    """How many labels a mean-reduced loss averages over; the samples of a target that is no tensor.

    Where the loss weighs its classes, by their weights.
    """
    return label_counts([task], {task.name: target})[0]
