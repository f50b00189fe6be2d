"""Tasks, and the labels that a batch has for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torchmetrics import Metric

from mtl.data.labels import Labels


@dataclass
class Task:
    """A task: its name, loss and metrics. Its head in the model and its target in the batch have the same name.

    ``labels``: the targets that the loss accepts, if known. ``own_metrics``: the metrics are named by the configuration
    and not by the data set, so that they need not know a missing label: they see the labelled samples of a batch only.
    """

    name: str
    loss: Callable[[Any, Any], Tensor]
    metrics: dict[str, Metric] = field(default_factory=dict)
    labels: Labels | None = None
    own_metrics: bool = False

    def update_metrics(self, prediction: Any, target: Any) -> None:
        """Add a batch to the metrics."""
        if self.own_metrics and self.metrics:
            prediction, target = _labelled_samples(self, prediction, target)
        for metric in self.metrics.values():
            metric.update(prediction, target)

    def to(self, device: torch.device) -> None:
        """Move the loss and the metrics to ``device``."""
        for part in (self.loss, *self.metrics.values()):
            if isinstance(part, nn.Module):
                part.to(device)


def loss_modules(tasks: Sequence[Task]) -> nn.ModuleDict:
    """The losses that are modules, by task; they may have parameters and buffers."""
    return nn.ModuleDict({task.name: task.loss for task in tasks if isinstance(task.loss, nn.Module)})


class CountedTargets(dict):
    """The targets of a batch, whose labels were counted before they went to the device: a step need not wait for it.

    ``counts``: of the labels of each task that can learn from the batch, see :func:`learnable_tasks`.
    """

    def __init__(self, targets: Mapping[str, Any], counts: Mapping[str, float]) -> None:
        super().__init__(targets)
        self.counts = dict(counts)


def present_tasks(tasks: Sequence[Task], targets: Mapping[str, Any]) -> list[Task]:
    """The tasks with a label in this batch.

    A task is absent if its key is missing in ``targets``, or if :func:`where_labelled` finds no label in its target. An
    absent task is excluded from the step; it is not a zero gradient.
    """
    candidates = [task for task in tasks if task.name in targets]
    labelled = [where_labelled(task, targets[task.name]) for task in candidates]
    # One transfer from the device for all tasks, not one per task.
    unknown = [mask.any() for mask in labelled if mask is not None]
    answers = iter(torch.stack(unknown).tolist() if unknown else [])
    return [task for task, mask in zip(candidates, labelled, strict=True) if (True if mask is None else next(answers))]


def learnable_tasks(tasks: Sequence[Task], targets: Mapping[str, Any]) -> list[Task]:
    """Those of :func:`present_tasks` whose loss is a number: class weights of 0 alone would leave a mean of nothing."""
    if isinstance(targets, CountedTargets):
        return [task for task in tasks if task.name in targets.counts]
    present = present_tasks(tasks, targets)
    weighted = [task for task in present if _class_weights(task, targets[task.name]) is not None]
    empty = {t.name for t, count in zip(weighted, label_counts(weighted, targets), strict=True) if not count}
    return [task for task in present if task.name not in empty]


def learnable_labels(tasks: Sequence[Task], targets: Mapping[str, Any]) -> dict[str, float]:
    """The counts of CountedTargets."""
    learnable = learnable_tasks(tasks, targets)
    return dict(zip([task.name for task in learnable], label_counts(learnable, targets), strict=True))


def label_counts(tasks: Sequence[Task], targets: Mapping[str, Any]) -> list[float]:
    """The number of labels of each task in this batch; see :func:`count_labels`."""
    if isinstance(targets, CountedTargets):
        return [targets.counts.get(task.name, 0) for task in tasks]
    counts: list[Any] = []
    for task in tasks:
        target = targets.get(task.name)
        mask = None if target is None else where_labelled(task, target)
        if target is None:
            counts.append(0)
        elif mask is not None and (weights := _class_weights(task, target)) is not None:
            counts.append(weights[target.where(mask, 0)].where(mask, 0.0).sum().item())
        elif mask is None:
            counts.append(target.numel() if isinstance(target, Tensor) else batch_size(target))
        else:
            counts.append(mask.sum())
    # One transfer from the device for all tasks, not one per task.
    unknown = [count for count in counts if isinstance(count, Tensor)]
    answers = iter(torch.stack(unknown).tolist() if unknown else [])
    return [next(answers) if isinstance(count, Tensor) else count for count in counts]


def batch_size(values: Any) -> int:
    """The samples of a batch: the length that all tensors of a nesting have in common, or that of a list of items."""
    if isinstance(values, Tensor):
        return len(values) if values.dim() else 1
    tensors = [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor) and leaf.dim()]
    lengths = {len(tensor) for tensor in tensors}
    return lengths.pop() if len(lengths) == 1 else len(values)


def where_labelled(task: Task, target: Any) -> Tensor | None:
    """A mask of the labels in ``target``, from the loss's method ``labelled`` if it has one.

    Otherwise the mask has the target's shape and excludes NaN, or the loss's ``ignore_index``. None means a label
    everywhere, or a target that is not a tensor.
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


def _labelled_samples(task: Task, prediction: Any, target: Any) -> tuple[Any, Any]:
    """The samples of a batch that have a label, as the same parts of prediction and target.

    Of a target with several labels a sample, as a map, samples with at least one stay whole.
    """
    mask = where_labelled(task, target)
    if mask is None:
        return prediction, target
    rows = mask.reshape(len(mask), -1).any(1)
    if rows.all():
        return prediction, target
    pick = partial(_pick, rows)
    return pytree.tree_map_only(Tensor, pick, prediction), pick(target)


def _pick(rows: Tensor, values: Tensor) -> Tensor:
    """The rows of a tensor that has one a sample; any other tensor as it is."""
    return values[rows] if values.dim() and len(values) == len(rows) else values


def _class_weights(task: Task, target: Tensor) -> Tensor | None:
    """The class weights of torch's classification losses, which divide by their sum over the labels; None without."""
    by_class = isinstance(task.loss, nn.CrossEntropyLoss | nn.NLLLoss) and not target.is_floating_point()
    return getattr(task.loss, "weight", None) if by_class else None


def count_labels(task: Task, target: Any) -> float:
    """The number of labels that a mean-reduced loss averages over.

    It is the sum of their class weights if the loss has some, and the number of samples if the target is not a tensor.
    A nesting of tensors of one length is a batch in parts, as a collated tuple; any other list has an item a sample.
    """
    return label_counts([task], {task.name: target})[0]
