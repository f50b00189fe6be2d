"""Many equal linear heads as one: their outputs are one matrix product, and so are their gradients at the features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.modules.module import _has_any_global_hook

from mtl.engine.head import Collector
from mtl.gradients.cut import Cut
from mtl.gradients.rows import OuterProductRows
from mtl.gradients.transfer import send
from mtl.losses import MaskedBCE, MaskedL1, MaskedL2
from mtl.model import MultiTaskModel
from mtl.tasks import Task

HOOKS = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"
OWN = {"weight", "bias"}  # the parameters of nn.Linear; torch's older weight_norm has others
LEAST = 6  # heads; fewer are as fast one by one
# Losses that torch.vmap computes for all tasks at once. Another one may ask its values, and then it cannot.
LOSSES = (
    nn.BCEWithLogitsLoss, nn.CrossEntropyLoss, nn.HuberLoss, nn.L1Loss, nn.MSELoss, nn.SmoothL1Loss,
    MaskedBCE, MaskedL1, MaskedL2,
)  # fmt: skip


def can_be_packed(model: MultiTaskModel, tasks: Sequence[Task], targets: Mapping[str, Any], features: Any) -> bool:
    """Whether the heads are equal ``nn.Linear`` modules that nobody watches, under equal losses and targets.

    Their outputs together must be no wider than the features: what is alive at once then is no more than these.
    """
    if len(tasks) < LEAST or not isinstance(features, Tensor) or _has_any_global_hook():
        return False
    kinds = {_kind(model.heads[task.name], task.loss, targets[task.name]) for task in tasks}
    first: Any = model.heads[tasks[0].name]
    return len(kinds) == 1 and None not in kinds and len(tasks) * first.out_features <= features.shape[-1]


def _kind(head: nn.Module, loss: Any, target: Any) -> tuple | None:
    """What must be the same of all tasks; None for one that must run by itself.

    That is, too, where the loss has tensors of its own, as weights of classes.
    """
    if type(head) is not nn.Linear or type(loss) not in LOSSES or not isinstance(target, Tensor):
        return None
    own = vars(head)  # an attribute of a module is found six times as fast here, and there are many heads
    parameters = own["_parameters"]
    if parameters.keys() != OWN or not all(p is None or _is_plain(p) for p in parameters.values()):
        return None
    if _is_watched(own) or _is_watched(vars(loss)) or any(b is not None for b in vars(loss)["_buffers"].values()):
        return None
    numbers = tuple([value for name, value in vars(loss).items() if name[0] != "_"])
    weight, bias = parameters["weight"], parameters["bias"]
    return weight.shape, weight.dtype, bias is None, type(loss), numbers, target.shape, target.dtype


def _is_plain(parameter: nn.Parameter) -> bool:
    """Whether its gradient can be put in its place: no hook waits for it, and a row-major one fits."""
    hooks = parameter._backward_hooks or parameter._post_accumulate_grad_hooks
    return type(parameter) is nn.Parameter and parameter.requires_grad and parameter.is_contiguous() and not hooks


def _is_watched(module: Mapping[str, Any]) -> bool:
    """Whether calling a module, given by its ``vars``, is more than its class's ``forward``."""
    return bool("forward" in module or module.get("_compiled_call_impl") or any(module[hooks] for hooks in HOOKS))


class PackedHeads:
    """All heads of a step at once, K of them with O outputs on features [..., D]: as one Head after the other."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector
        self._modules: list[Any] = [collector.step.engine.model.heads[name] for name in collector.step.names]

    def backward(self) -> None:
        """The losses and gradients of every head, each times the task's weight and this rank's share of its labels."""
        collector, step = self._collector, self._collector.step
        leaf, scale = collector.cut.leaves[0], step.engine.precision.scale
        weight = torch.cat([module.weight.detach() for module in self._modules])  # [K O, D]
        output, losses = self._forward(leaf, weight)
        parts = losses.detach()
        step.weights = {
            name: step.task_weights.weight(name, part) for name, part in zip(step.names, parts.unbind(), strict=True)
        }
        shares = _vector(list(step.shares.values()), parts)
        into = torch.stack(list(step.weights.values())).to(parts) * shares * scale
        errors = torch.autograd.grad(losses, output, into)[0].flatten(0, -2)  # [N, K O]
        self._add_gradients(errors, leaf)
        factors = None if collector.factors is None else [collector.factors[name] for name in step.names]
        _collect(collector.cut, errors, weight, len(self._modules), factors)
        kind = step.engine.zero_loss().dtype
        collector.parts = dict(zip(step.names, (parts * shares).to(kind).unbind(), strict=True))

    def _forward(self, leaf: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The outputs [..., K O], a leaf, and the losses [K] of them."""
        step, modules = self._collector.step, self._modules
        bias = None if modules[0].bias is None else torch.cat([module.bias.detach() for module in modules])
        with step.engine.autocast():
            output = linear(leaf.detach(), weight, bias).requires_grad_()
        # Autocast would take losses in float32, but not where torch.vmap has made other operations of them.
        low = step.engine.precision.dtype is not None
        exact = output.to(torch.promote_types(output.dtype, torch.float32)) if low else output
        of_tasks = exact.unflatten(-1, (len(modules), -1)).movedim(-2, 0)
        targets = torch.stack([step.targets[name] for name in step.names])
        return output, torch.vmap(step.tasks[0].loss)(of_tasks, targets)

    def _add_gradients(self, errors: Tensor, leaf: Tensor) -> None:
        size, kind = self._modules[0].out_features, self._modules[0].weight.dtype
        of_weights = (errors.T @ leaf.detach().flatten(0, -2).to(errors.dtype)).to(kind).split(size)
        of_biases = errors.sum(0).to(kind).split(size)
        for name, module, *gradients in zip(
            self._collector.step.names, self._modules, of_weights, of_biases, strict=True
        ):
            for parameter, gradient in zip((module.weight, module.bias), gradients, strict=True):
                if parameter is not None:
                    parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
            if self._collector.deferred is not None:  # before the next head, which may share a parameter
                self._collector.deferred.stash(name)


def _collect(cut: Cut, errors: Tensor, weight: Tensor, count: int, factors: Sequence[float] | None) -> None:
    """Leave on the cut what the heads' backwards would: the sum of their gradients, and the rows if they are kept."""
    leaf, rows = cut.leaves[0], cut.rows
    size = len(weight) // count  # outputs of a head
    if rows is not None and size == 1:
        # Not in float16, which the loss scale is there for.
        wide = errors.to(torch.promote_types(errors.dtype, torch.float32))
        rows = OuterProductRows(wide / cut.loss_scale, weight, leaf)
    elif rows is not None:
        for own, matrix in zip(errors.split(size, 1), weight.split(size), strict=True):
            rows.append([(own @ matrix.to(own.dtype)).view(leaf.shape)], cut.loss_scale)
    if factors is not None:
        errors = errors * _vector(factors, errors).repeat_interleave(size)
    cut.collect_all((errors @ weight.to(errors.dtype)).view(leaf.shape).to(leaf.dtype), rows)


def _vector(numbers: Sequence[float], like: Tensor) -> Tensor:
    return send(torch.tensor(numbers, dtype=like.dtype), like.device)
