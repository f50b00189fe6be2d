"""The model: a shared backbone under one head a task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from mtl.distributed.data_parallel import no_sync
from mtl.distributed.sharding import shard_like, unsharded
from mtl.tasks import Task


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

    def zero_loss(self) -> Tensor:
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

    def load_full_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load a state dict of whole tensors, also where this model is spread over several processes."""
        own = self.state_dict()
        self.load_state_dict({n: shard_like(v, own[n]) if n in own else v for n, v in state.items()})

    def is_compiled(self) -> bool:
        """Whether the backbone or a head is."""
        return any(getattr(m, "_compiled_call_impl", None) is not None for m in (self.backbone, *self.heads.values()))

    @contextmanager
    def eager_unsharded(self) -> Iterator[None]:
        """Inside, what is compiled runs as it was written, so that an evaluation is the same as any later one's.

        What is spread over several processes is whole: one may run a head, or have a batch, that others do not.
        """
        whole = unsharded(self.backbone, *self.heads.values())
        with whole, torch.compiler.set_stance("force_eager") if self.is_compiled() else nullcontext():
            yield

    @contextmanager
    def unsynchronised(self) -> Iterator[None]:
        """Inside, gradients stay on their ranks, but for those of spread heads, which a later batch may lack."""
        self.synchronises = False
        try:
            with no_sync(self._trunk[0] if self._trunk else self.backbone):
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
