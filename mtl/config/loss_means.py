"""Whether a loss is the mean over its labels, told by numbers.

Processes have parts of a batch. Their losses add up to the whole's, each times its share of the labels, for such a loss
only; Dice and contrastive losses are others.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mtl.config.restored import restored
from mtl.losses import CosineNormals, Focal, InverseDepth, MaskedBCE, MaskedL1, MaskedL2, TokenCrossEntropy
from mtl.model import graph_tensors
from mtl.tasks import Task, batch_size, label_counts

# Losses that need not be tried before a run: their tests do it. Subclasses, and other reductions, are.
KNOWN = (
    nn.BCELoss, nn.BCEWithLogitsLoss, nn.CrossEntropyLoss, nn.HuberLoss, nn.L1Loss, nn.MSELoss, nn.NLLLoss,
    nn.SmoothL1Loss, nn.SoftMarginLoss,
    CosineNormals, Focal, InverseDepth, MaskedBCE, MaskedL1, MaskedL2, TokenCrossEntropy,
)  # fmt: skip
MOST, LEAST, ELEMENTS = 16, 4, 2**18  # samples that a loss is tried on, and the numbers in their predictions
MISSING = -100, -1, 0, 255  # what targets may have for a missing label, if they have it

Value = tuple[Tensor, list[Tensor]]  # of a loss, and its gradient at the prediction


class NotTold(Exception):
    """The numbers do not tell whether a loss is a mean; the message says why."""


def is_known_mean(loss: Any) -> bool:
    """Whether a loss is one that is a mean over its labels, by its class."""
    return type(loss) in KNOWN and getattr(loss, "reduction", "mean") == "mean"


def is_mean(task: Task, prediction: Any, target: Any) -> bool:
    """Whether a task's loss, and its gradient, are the means of its parts', weighted by their labels.

    ``prediction``: two samples' or so, for its shapes; ``target``: that of several samples, as different as they may
    be. The loss is tried on random predictions, on each target twice, so that every sample has one of its kind. NotTold
    where it draws random numbers or changes its buffers, where no target has a label, or where it takes no such number.
    """
    loss, generator = _on_cpu(task.loss), torch.Generator().manual_seed(0)
    prediction, target = pytree.tree_map_only(Tensor, lambda t: t.detach().cpu(), (prediction, target))
    count = _count(prediction, target)
    target = _twice(target, count // 2)
    values, whole = _fitting_predictions(loss, prediction, target, count, generator)
    if not all(map(_close, _flat(whole), _flat(_value(loss, values, target, seed=1)))):
        raise NotTold("it draws random numbers")
    own = Task(task.name, loss, labels=task.labels)
    answers = [
        answer for labels in _variants(own, target, generator) for answer in _answers(own, values, labels, count)
    ]
    if not answers:
        raise NotTold("the samples have no label of it")
    return all(answers)


def _fitting_predictions(
    loss: Callable, prediction: Any, target: Any, count: int, generator: torch.Generator
) -> tuple[Any, Value]:
    """Random predictions that the loss takes, and what it makes of them: any numbers, or those from 0 to 1."""
    for squash in (False, True):
        values = _random(prediction, count, generator, squash)
        if (whole := _try(loss, values, target)) is not None:
            return values, whole
    raise NotTold("it gives no number for random predictions")


def _answers(task: Task, values: Any, target: Any, count: int) -> Iterator[bool]:
    """Whether the parts agree with the whole, for several ways to split ``count`` samples."""
    whole = _try(task.loss, values, target)
    if whole is None:
        return
    order = list(range(count))
    third = max(2, count // 3)
    for split in (
        (order[: count // 2], order[count // 2 :]),
        (order[::2], order[1::2]),
        (order[:third], order[third:]),
    ):
        counts = [label_counts([task], {task.name: _take(target, part, count)})[0] for part in split]
        total = sum(counts)
        if not total:
            return
        parts = [
            _scaled(_try(task.loss, values, target, part, count), own / total)
            for part, own in zip(split, counts, strict=True)
            if own
        ]
        known = [part for part in parts if part is not None]
        sums = [torch.stack(numbers).sum(0) for numbers in zip(*known, strict=True)]
        size = torch.stack([part[0].abs() for part in known] or [torch.zeros(())]).sum()
        yield len(known) == len(parts) and all(map(_close, _flat(whole), sums, [size] + [None] * len(sums)))


def _try(loss: Callable, values: Any, target: Any, part: Sequence[int] | None = None, count: int = 0) -> Value | None:
    """The loss and its gradient; None where it is not finite, or is not to be had."""
    try:
        value = _value(loss, values, target, part, count)
    except NotTold:
        raise
    except Exception:
        return None
    return value if all(number.isfinite().all() for number in _flat(value)) else None


def _value(
    loss: Callable, values: Any, target: Any, part: Sequence[int] | None = None, count: int = 0, seed: int = 0
) -> Value:
    leaves = [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor) and leaf.requires_grad]
    buffers = list(loss.buffers()) if isinstance(loss, nn.Module) else []
    before = [buffer.clone() for buffer in buffers]
    with restored(loss), torch.enable_grad():
        torch.default_generator.manual_seed(seed)
        own = (values, target) if part is None else (_take(values, part, count), _take(target, part, count))
        # Clones: the loss may work in place on what it is given.
        value = loss(*pytree.tree_map_only(Tensor, torch.clone, own)).sum()
        found = torch.autograd.grad(value, leaves, allow_unused=True) if value.requires_grad and leaves else ()
        if not all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(buffers, before, strict=True)):
            raise NotTold("it changes its own buffers")
    gradients = [torch.zeros_like(z) if g is None else g for z, g in zip(leaves, found, strict=False)]
    return value.detach(), gradients


def _variants(task: Task, target: Any, generator: torch.Generator) -> Iterator[Any]:
    """The targets as they are; with other classes; and with missing labels, unevenly."""
    yield target
    if not isinstance(target, Tensor) or target.dtype is torch.bool:
        return
    if not target.is_floating_point() and task.labels is not None and task.labels.highest is not None:
        drawn = torch.randint(task.labels.highest + 1, target.shape, generator=generator).to(target)
        yield drawn.where((target >= 0) & (target <= task.labels.highest), target)
    declared = [torch.nan] if target.is_floating_point() else [getattr(task.loss, "ignore_index", None)]
    for value in dict.fromkeys([*declared, *(value for value in MISSING if (target == value).any())]):
        if value is not None:
            gap = target.clone()
            gap[: len(gap) // 4] = value
            if gap.dim() > 1:
                gap[len(gap) // 4, : max(1, gap.shape[1] // 2)] = value
            yield gap


def _on_cpu(loss: Any) -> Any:
    """A loss on the CPU, where a wrong label is an error and not the end of the process."""
    if not isinstance(loss, nn.Module) or all(t.device.type == "cpu" for t in (*loss.parameters(), *loss.buffers())):
        return loss
    return copy.deepcopy(loss, graph_tensors(loss)).cpu()


def _count(prediction: Any, target: Any) -> int:
    """How many samples the loss is tried on: twice as many as targets, but no more numbers than ``ELEMENTS``."""
    leaves = [leaf for leaf in pytree.tree_leaves(prediction) if isinstance(leaf, Tensor) and leaf.dim()]
    each = sum(leaf.numel() for leaf in leaves) / max(1, len(leaves[0]) if leaves else 1)
    return 2 * min(batch_size(target), max(LEAST, min(MOST, int(ELEMENTS / max(1.0, each)))) // 2)


def _random(prediction: Any, count: int, generator: torch.Generator, squash: bool) -> Any:
    """Random numbers in the shapes of ``count`` predictions; ``squash``: from 0 to 1, as probabilities are."""
    samples = batch_size(prediction)

    def drawn(leaf: Tensor) -> Tensor:
        if not leaf.is_floating_point() or not leaf.dim():
            return leaf
        shape = (len(leaf) // samples * count, *leaf.shape[1:])
        values = torch.randn(shape, generator=generator).to(torch.promote_types(leaf.dtype, torch.float32))
        return (values.sigmoid() if squash else values).requires_grad_()

    return pytree.tree_map_only(Tensor, drawn, prediction)


def _twice(target: Any, count: int) -> Any:
    """The first ``count`` samples' targets, twice."""
    return _take(target, [*range(count), *range(count)], batch_size(target))


def _take(values: Any, part: Sequence[int], count: int) -> Any:
    """The samples ``part`` of ``count``: of every tensor that has them, or of a list with an item a sample."""
    tensors = [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor) and leaf.dim()]
    if isinstance(values, list | tuple) and len(values) == count and not all(len(t) == count for t in tensors):
        return [values[i] for i in part]

    def taken(leaf: Tensor) -> Tensor:
        if not leaf.dim() or len(leaf) % count:
            return leaf
        return leaf.unflatten(0, (count, -1))[list(part)].flatten(0, 1)

    return pytree.tree_map_only(Tensor, taken, values)


def _scaled(value: Value | None, share: float) -> list[Tensor] | None:
    return None if value is None else [share * number for number in _flat(value)]


def _flat(value: Value) -> list[Tensor]:
    return [value[0], *value[1]]


def _close(a: Tensor, b: Tensor, size: Tensor | None = None) -> bool:
    scale = max(a.norm().item(), b.norm().item(), 0.0 if size is None else size.item())
    return (a - b).norm().item() <= 1e-3 * scale + 1e-7
