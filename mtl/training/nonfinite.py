"""Losses and gradients that are not finite: find them before anything learns from them, and name their cause."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mtl.distributed.collectives import is_distributed
from mtl.distributed.sharding import full_tensor, is_sharded
from mtl.engine.engine import Engine
from mtl.engine.result import StepResult
from mtl.errors import RunError
from mtl.gradients.cut import Cut
from mtl.gradients.transfer import widest
from mtl.model import MultiTaskModel
from mtl.tasks import Task, learnable_tasks, loss_modules

log = logging.getLogger(__name__)


class NotFinite(RunError, FloatingPointError):
    """A loss or a gradient that is not finite."""


class GradientNorm:
    """The norm of the gradients of some parameters, and clipping by it.

    torch takes no norm of sharded and unsharded parameters together: they are told apart once, when it is made.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._whole = [p for p in parameters if not is_sharded(p)]
        self.sharded = [p for p in parameters if is_sharded(p)]
        self._each: tuple[list[nn.Parameter], Tensor] = [], torch.zeros(0)  # the whole ones of the latest total

    def total(self) -> Tensor:
        """The norm of all gradients together, exact where their squares overflow float32."""
        own = [p for p in self._whole if p.grad is not None]
        self._each = own, _norms([p.grad for p in own if p.grad is not None])
        total = torch.linalg.vector_norm(self._each[1])
        sharded = [p.grad for p in self.sharded if p.grad is not None]
        return torch.stack([total.to(sharded[0].device), _norm_of_sharded(sharded)]).norm() if sharded else total

    def not_finite(self) -> Callable[[], set[nn.Parameter]]:
        """What finds, later, the parameters whose gradients were not finite at the latest ``total``."""
        own, norms = self._each

        def find() -> set[nn.Parameter]:
            whole = {p for p, finite in zip(own, norms.isfinite().tolist(), strict=True) if not finite}
            return whole | {p for p in self.sharded if not _finite(p.grad)}

        return find

    def clip(self, max_norm: float, norm: Tensor) -> None:
        """Scale the gradients down to ``max_norm`` if their total ``norm`` is larger."""
        for group in (self._whole, self.sharded):
            if group:
                kind = torch.promote_types(group[0].dtype, torch.float32)
                nn.utils.clip_grads_with_norm_(group, max_norm, norm.to(kind))


def _norms(gradients: list[Tensor]) -> Tensor:
    """The norm of each ``[P]``. In float64: of a sum of squares, float32 overflows at finite gradients.

    On the CPU, where asking costs nothing and float64 does, and where there is none, in float64 where it is needed.
    """
    if not gradients:
        return torch.zeros(0)
    device = gradients[0].device
    at_once = device.type != "cpu" and widest(device) == torch.float64
    norms = torch.stack(torch._foreach_norm(gradients, 2.0, dtype=torch.float64 if at_once else None))
    if not at_once and not norms.isfinite().all() and all(map(_finite, gradients)):
        wide = [g.to("cpu" if widest(device) != torch.float64 else device).double() for g in gradients]
        norms = torch.stack(torch._foreach_norm(wide, 2.0))
    return norms


def _norm_of_sharded(gradients: list[Tensor]) -> Tensor:
    norm = full_tensor(nn.utils.get_total_norm(gradients))
    if not torch.isfinite(norm) and all(full_tensor(g.isfinite().all()) for g in gradients):
        norm = full_tensor(nn.utils.get_total_norm([g.double() for g in gradients]))
    return norm


class StepSnapshot:
    """A copy of the state that a step changes before its gradient is checked, to undo a step that is skipped.

    That state is the buffers of the model and of the losses (running statistics), and the strategy with its weighting
    and rule. The parameters and the optimizer change after the check only.
    """

    def __init__(self, model: MultiTaskModel, tasks: Sequence[Task], strategy: nn.Module) -> None:
        self._strategy = strategy
        self._buffers = [*model.buffers(), *loss_modules(tasks).buffers()]

    def save(self) -> None:
        """Copy the state, before a step."""
        self._saved = [buffer.clone() for buffer in self._buffers]
        self._state = copy.deepcopy(self._strategy.state_dict())

    def restore(self) -> None:
        """Bring the state back to the latest copy."""
        with torch.no_grad():
            for buffer, saved in zip(self._buffers, self._saved, strict=True):
                buffer.copy_(saved)
        self._strategy.load_state_dict(self._state)


def diagnose(
    engine: Engine,
    inputs: Any,
    targets: Mapping[str, Any],
    result: StepResult,
    indices: Sequence[int],
    not_finite: Collection[nn.Parameter],
) -> str:
    """Say in words which losses of a step are not finite; if all are, which tasks' gradients, or which parameters'.

    The tasks' gradients with respect to the features are computed again, one by one, which changes the model's buffers
    and gradients. ``indices`` are the samples of the batch; those whose inputs are not finite are named.
    ``not_finite``: the parameters whose gradients were not.
    """
    finite = _finite_samples(inputs)
    bad = [index for index, good in zip(indices, finite, strict=True) if not good] if finite else []
    cause = f" (the inputs of the samples {_few(bad)} are not finite)" if bad else ""
    losses = [f"the loss of {name} is {loss.item()}" for name, loss in result.losses.items() if not loss.isfinite()]
    if losses:
        unlabelled = [name for name, loss in result.losses.items() if not loss.isfinite() and _has_nan(targets, name)]
        gaps = f" (labels of {_few(unlabelled)} are missing, NaN: the loss must leave them out)" if unlabelled else ""
        guilty = [name for name, loss in result.losses.items() if not loss.isfinite()]
        alone = [] if bad else _samples_not_finite(engine, guilty[0], inputs, targets[guilty[0]], indices)
        samples = f" (that of the samples {_few(alone)} by themselves)" if alone else ""
        return " and ".join(losses) + cause + samples + gaps
    named = [name for name, parameter in engine.model.named_parameters() if parameter in not_finite]
    # Ranks differ in the tasks of their batches: a rank without a task would keep the others waiting.
    guilty = [] if is_distributed() else _tasks_not_finite(engine, inputs, targets)
    if guilty:
        return f"the gradient of {' and '.join(guilty)} with respect to the features is not finite{cause}"
    return f"the gradient of {_few(named) or 'a parameter'} is not finite, though every loss is{cause}"


def _samples_not_finite(engine: Engine, task: str, inputs: Any, target: Any, indices: Sequence[int]) -> list[int]:
    """The samples of which alone the loss of a task is not finite; none where that tells nothing."""
    own, count = next(other for other in engine.tasks if other.name == task), len(indices)
    if is_distributed():  # the other ranks are not here, and batch statistics may be those of all
        return []

    def one(value: Any, n: int) -> Any:
        return pytree.tree_map_only(Tensor, lambda x: x[n : n + 1] if x.dim() and len(x) == count else x, value)

    try:
        with torch.no_grad(), torch.random.fork_rng():
            features = engine.features(inputs)
            losses = [engine.loss(own, one(features, n), one(target, n)) for n in range(count)]
    except Exception:  # as a loss or a normalisation that needs several samples
        return []
    found = [index for index, loss in zip(indices, losses, strict=True) if not loss.isfinite()]
    return found if len(found) < count else []


def _tasks_not_finite(engine: Engine, inputs: Any, targets: Mapping[str, Any]) -> list[str]:
    """The tasks whose gradients with respect to the features are not finite."""
    guilty = []
    with torch.random.fork_rng():
        cut = Cut(engine.features(inputs))
        for task in learnable_tasks(engine.tasks, targets):
            loss = engine.loss(task, cut.features, targets[task.name])
            if loss.requires_grad:
                loss.backward()
            if not all(_finite(leaf.grad) for leaf in cut.leaves):
                guilty.append(task.name)
            for leaf in cut.leaves:
                leaf.grad = None
    return guilty


def _finite_samples(inputs: Any) -> list[bool]:
    """For each sample of a batch, whether all of its numbers are finite."""
    answers = [
        leaf.detach().isfinite().flatten(1).all(1) if leaf.dim() > 1 else leaf.isfinite()
        for leaf in pytree.tree_leaves(inputs)
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dim()
    ]
    same = [answer for answer in answers if answer.shape == answers[0].shape]
    return torch.stack(same).all(0).tolist() if same else []


def _has_nan(targets: Mapping[str, Any], task: str) -> bool:
    target = targets.get(task)
    return isinstance(target, Tensor) and bool(target.isnan().any())


def _finite(gradient: Tensor | None) -> bool:
    return gradient is None or bool(gradient.isfinite().all())


def _few(items: Sequence[Any]) -> str:
    return ", ".join(map(str, items[:5])) + (" …" if len(items) > 5 else "")
