"""The model, a shared backbone under one head a task, and what a task is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from mtl import distributed
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


class MultiTaskModel(nn.Module):
    """``heads[task](backbone(inputs))`` for every task.

    The backbone returns the shared features (a tensor, or a nesting of tuples, lists and dicts of tensors);
    each head is any module that maps them to a prediction. ``share`` names submodules that the heads have in common, as
    an unembedding: the first head's takes the place of the others'. ValueError where a head has no such submodule, or
    one of another kind or size.
    """

    def __init__(self, backbone: nn.Module, heads: Mapping[str, nn.Module], share: Sequence[str] = ()) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleDict(heads)
        self.precision: torch.dtype | None = None  # what autocast computes in; None: whatever comes in
        self.loss_scale = 1.0  # what a strategy multiplies all its gradients by, and the training loop divides out
        self.synchronises = True  # whether gradients are summed over the ranks; not where more batches of a step come
        self.unsent: dict[str, Task] = {}  # tasks with gradients of this step that have not been summed over the ranks
        self._trunk: list[nn.Module] = []  # in a list, where it is no submodule: it only wraps the backbone
        for name in share:
            _share(heads, name)

    def forward(self, inputs: Any) -> dict[str, Any]:
        """The prediction of every task, by its name."""
        features = self.features(inputs)
        return {task: self.predict(task, features) for task in self.heads}

    def features(self, inputs: Any) -> Any:
        """The shared features of a batch, in the model's precision."""
        with self.autocast():
            return (self._trunk[0] if self._trunk and torch.is_grad_enabled() else self.backbone)(inputs)

    def predict(self, task: str, features: Any) -> Any:
        """One head's prediction, in the model's precision."""
        with self.autocast():
            return self.heads[task](features)

    def loss(self, task: Task, features: Any, target: Any) -> Tensor:
        """One task's loss, in float32 where autocast knows that it should be."""
        with self.autocast():
            return task.loss(self.heads[task.name](features), target)

    def no_loss(self) -> Tensor:
        """Zero, of the type that losses are added up in: the parameters' own, float32 or better, on every rank."""
        own = next(self.parameters())
        return torch.zeros((), dtype=torch.promote_types(own.dtype, torch.float32), device=own.device)

    def autocast(self) -> AbstractContextManager:
        """Mixed precision, for a forward pass only: a backward pass and the rules run outside of it."""
        if self.precision is None:
            return nullcontext()
        return torch.autocast(next(self.parameters()).device.type, self.precision)

    def train_through(self, trunk: nn.Module) -> None:
        """Have the features of training steps computed by ``trunk``, a module around the backbone."""
        self._trunk = [trunk]

    def load_whole(self, state: Mapping[str, Tensor]) -> None:
        """Load a state dict of whole tensors, also where this model is spread over several processes."""
        own = self.state_dict()
        self.load_state_dict({n: distributed.spread_like(v, own[n]) if n in own else v for n, v in state.items()})

    def is_compiled(self) -> bool:
        """Whether the backbone or a head is."""
        return any(getattr(m, "_compiled_call_impl", None) is not None for m in (self.backbone, *self.heads.values()))

    @contextmanager
    def by_itself(self) -> Iterator[None]:
        """Inside, what is compiled runs as it was written, so that an evaluation is the same as any later one's.

        What is spread over several processes is whole: one may run a head, or have a batch, that others do not.
        """
        whole = distributed.gathered(self.backbone, *self.heads.values())
        with whole, torch.compiler.set_stance("force_eager") if self.is_compiled() else nullcontext():
            yield

    @contextmanager
    def unsynchronised(self) -> Iterator[None]:
        """Inside, gradients stay on their ranks, but for those of spread heads, which a later batch may lack."""
        self.synchronises = False
        try:
            with distributed.unsynchronised(self._trunk[0] if self._trunk else self.backbone):
                yield
        finally:
            self.synchronises = True

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """The backbone's parameters: what the tasks share."""
        return self.backbone.parameters()

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """The heads' parameters; one that several heads share comes once."""
        return self.heads.parameters()


def _share(heads: Mapping[str, nn.Module], name: str) -> None:
    own = {}
    for task, head in heads.items():
        submodules = dict(head.named_modules(remove_duplicate=False))
        del submodules[""]
        if name not in submodules:
            raise ValueError(f"share={name}: the head of {task} has only {', '.join(submodules) or 'no submodules'}.")
        own[task] = submodules[name]
    first, *others = own
    for task in others:
        if str(own[task]) != str(own[first]):
            a, b = (
                f"{type(m).__name__} of {sum(p.numel() for p in m.parameters())} numbers"
                for m in (own[first], own[task])
            )
            raise ValueError(f"share={name}: it is a {a} in {first}, but a {b} in {task}.")
        heads[task].set_submodule(name, own[first])


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
