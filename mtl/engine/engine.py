"""How one model runs on this machine, from step to step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mtl.distributed.collectives import waits
from mtl.distributed.data_parallel import no_sync
from mtl.distributed.reducer import Reducer
from mtl.distributed.sharding import is_sharded, unsharded
from mtl.engine.precision import Precision
from mtl.model import MultiTaskModel
from mtl.tasks import Task


class Engine:
    """A model and its tasks, and how they run here: precision, wrapped trunk, the ranks.

    ``wrapped``: a module around the backbone that training steps call, as DistributedDataParallel. ``reduces``: whether
    a step's gradients are summed over the ranks; ``unreduced``: the tasks whose heads wait for that.
    """

    def __init__(self, model: MultiTaskModel, tasks: Sequence[Task], precision: Precision | None = None) -> None:
        self.model, self.tasks = model, list(tasks)
        self.precision = Precision() if precision is None else precision
        self.wrapped: nn.Module | None = None
        self.reducer = Reducer()
        self.reduces = True
        self.unreduced: dict[str, Task] = {}

    def on(self, model: MultiTaskModel) -> Engine:
        """The same for another model of the same architecture, as the average of its weights."""
        return Engine(model, self.tasks, self.precision)

    @property
    def trunk(self) -> nn.Module:
        """The backbone as training steps call it."""
        return self.model.backbone if self.wrapped is None else self.wrapped

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next(self.model.parameters()).device

    def autocast(self) -> AbstractContextManager:
        """Mixed precision, for forward passes only: backward passes and rules run outside of it."""
        if self.precision.dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.precision.dtype)

    def features(self, inputs: Any) -> Any:
        """The shared features of a batch."""
        with self.autocast():
            return (self.trunk if torch.is_grad_enabled() else self.model.backbone)(inputs)

    def predict(self, task: str, features: Any) -> Any:
        """One head's prediction."""
        with self.autocast():
            return self.model.heads[task](features)

    def loss(self, task: Task, features: Any, target: Any) -> Tensor:
        """One task's loss, in float32 where autocast knows that it should be."""
        with self.autocast():
            return task.loss(self.model.heads[task.name](features), target)

    def zero_loss(self) -> Tensor:
        """Zero, in the type that losses are summed in on every rank: the parameters' own, float32 or better."""
        own = next(self.model.parameters())
        return torch.zeros((), dtype=torch.promote_types(own.dtype, torch.float32), device=own.device)

    def zero_head_loss(self, task: Task, features: Any) -> Tensor | None:
        """A zero loss connected to the head's output, so that its collectives run on this rank; None if it has none."""
        head = self.model.heads[task.name]
        if not (waits(head) or is_sharded(*head.parameters()) or any(_penalised(head))):
            return None
        outputs = [output for output in pytree.tree_leaves(self.predict(task.name, features)) if output.requires_grad]
        return torch.stack([output.flatten()[:0].sum() for output in outputs]).sum()

    def penalty(self, task: str) -> Tensor | None:
        """The sum of the penalties that the last forward pass of a head has left in it; None without one."""
        found = [module.penalty() for module in _penalised(self.model.heads[task])]
        penalties = [penalty for penalty in found if penalty is not None and penalty.requires_grad]
        return torch.stack(penalties).sum() if penalties else None

    def trained_shared_parameters(self) -> list[nn.Parameter]:
        """The backbone's parameters that are trained."""
        return [p for p in self.model.shared_parameters() if p.requires_grad]

    def trained_shared_parameters_of(self, part: Sequence[str]) -> list[nn.Parameter]:
        """Those of a part of the backbone, by names or patterns."""
        return [p for p in self.model.shared_parameters_of(part) if p.requires_grad]

    def trained_common_parameters(self) -> list[nn.Parameter]:
        """The parameters that several heads hold and that are trained."""
        return [p for p in self.model.common_parameters() if p.requires_grad]

    @property
    def trains_shared(self) -> bool:
        """Whether anything that the tasks share is trained: before ``trainer.unfreeze_at`` there may be nothing."""
        return bool(self.trained_shared_parameters() or self.trained_common_parameters())

    @contextmanager
    def eager_unsharded(self) -> Iterator[None]:
        """Compiled modules run eagerly, so that ``mtl-eval`` reproduces these numbers; parameters are unsharded.

        Then a forward pass needs no communication, and a rank may run a head, or have a batch, that others do not.
        """
        model = self.model
        with (
            unsharded(model.backbone, *model.heads.values()),
            torch.compiler.set_stance("force_eager") if model.is_compiled() else nullcontext(),
        ):
            yield

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Gradients stay on their ranks in this context, but for sharded heads, which a later batch may lack."""
        before, self.reduces = self.reduces, False
        try:
            with no_sync(self.trunk):
                yield
        finally:
            self.reduces = before


def _penalised(head: nn.Module) -> Iterator[Any]:
    """The modules of a head that have penalties; see mtl.architectures."""
    return (module for module in head.modules() if callable(getattr(module, "penalty", None)))
