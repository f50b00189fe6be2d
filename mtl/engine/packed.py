"""Many equal linear heads as one: their outputs are one matrix product, and so is what they leave on the features."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.modules.module import _has_any_global_hook

from mtl.engine.shares import LabelShares
from mtl.gradients.cut import Cut
from mtl.gradients.rows import OuterProductRows
from mtl.losses import MaskedBCE, MaskedL1, MaskedL2
from mtl.model import MultiTaskModel
from mtl.tasks import Task

if TYPE_CHECKING:
    from mtl.engine.weighting import DeferredGradients

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


def run_packed(
    model: MultiTaskModel,
    shard: LabelShares,
    targets: Mapping[str, Any],
    cut: Cut,
    weigh: Callable[[str, Tensor], Tensor],
    held: DeferredGradients | None,
    factors: Mapping[str, float] | None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What run_heads does, for heads that can be packed: K heads of O outputs on features [..., D]."""
    names = list(shard.shares)
    heads: list[Any] = [model.heads[name] for name in names]
    leaf = cut.leaves[0]
    weight = torch.cat([head.weight.detach() for head in heads])  # [K O, D]
    bias = None if heads[0].bias is None else torch.cat([head.bias.detach() for head in heads])
    with model.autocast():
        output = linear(leaf.detach(), weight, bias).requires_grad_()  # [..., K O]
    # Autocast would take losses in float32, but not where torch.vmap has made other operations of them.
    exact = output if model.precision is None else output.to(torch.promote_types(output.dtype, torch.float32))
    of_tasks = exact.unflatten(-1, (len(heads), -1)).movedim(-2, 0)
    losses = torch.vmap(shard.tasks[0].loss)(of_tasks, torch.stack([targets[name] for name in names]))
    parts = losses.detach()
    weights = {name: weigh(name, part) for name, part in zip(names, parts.unbind(), strict=True)}
    shares = parts.new_tensor(list(shard.shares.values()))
    into = torch.stack(list(weights.values())).to(parts) * shares * model.loss_scale
    errors = torch.autograd.grad(losses, output, into)[0].flatten(0, -2)  # [N, K O]
    for name, head, *gradients in zip(names, heads, *_own_gradients(heads, errors, leaf), strict=True):
        for parameter, gradient in zip((head.weight, head.bias), gradients, strict=True):
            if parameter is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        if held is not None:  # before the next head, which may share a parameter
            held.take(name)
    by_task = None if factors is None else [factors[name] for name in names]
    _land(cut, errors, weight, len(heads), by_task, model.loss_scale)
    return dict(zip(names, (parts * shares).to(model.zero_loss().dtype).unbind(), strict=True)), weights


def _own_gradients(heads: Sequence[nn.Linear], errors: Tensor, leaf: Tensor) -> tuple[Sequence[Tensor], ...]:
    """The gradients of every head's weights, and those of its biases."""
    size, kind = heads[0].out_features, heads[0].weight.dtype
    of_weights = (errors.T @ leaf.detach().flatten(0, -2).to(errors.dtype)).to(kind).split(size)
    return of_weights, errors.sum(0).to(kind).split(size)


def _land(
    cut: Cut, errors: Tensor, weight: Tensor, count: int, factors: Sequence[float] | None, loss_scale: float
) -> None:
    """Leave on the cut what the heads' backwards would: the sum of their gradients, and the rows if they are kept."""
    leaf, rows = cut.leaves[0], cut.rows
    size = len(weight) // count  # outputs of a head
    if rows is not None and size == 1:
        # Not in float16, which the loss scale is there for.
        rows = OuterProductRows(errors.to(torch.promote_types(errors.dtype, torch.float32)) / loss_scale, weight, leaf)
    elif rows is not None:
        for own, matrix in zip(errors.split(size, 1), weight.split(size), strict=True):
            rows.append([(own @ matrix.to(own.dtype)).view(leaf.shape)], loss_scale)
    if factors is not None:
        errors = errors * errors.new_tensor(factors).repeat_interleave(size)
    cut.collect_all((errors @ weight.to(errors.dtype)).view(leaf.shape).to(leaf.dtype), rows)
