"""Balancing for a loop that has its losses in hand, without a layer in its model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.utils import _pytree as pytree

from mtl.balance import Balance, BalanceResult, LossScaler, check_features

Losses = Mapping[str, Tensor | None] | Sequence[Tensor | None]


def backward(
    losses: Losses,
    features: Any,
    rule: nn.Module | None,
    heads: nn.Module | Iterable[Tensor] | None = None,
    scale: float | str = 1.0,
    loss_scale: LossScaler | float = 1.0,
) -> BalanceResult:
    """Add the gradients of the losses to ``.grad``: a head's is that of its own loss, the trunk's the rule's direction.

    What comes before the features gets ``scale * sum_i w_i g_i``, with g_i the gradient of loss i at the features, in
    one backward of the trunk. ::

        z = trunk(x)
        losses = {task: loss(head(z), y[task]) for task, head in heads.items()}
        mtl.backward(losses, features=z, rule=rule)

    - ``losses``: scalars by task, or a list of them, whose tasks are called 0, 1, …; a rule with state needs the same
      tasks in each call. None, or a loss without a gradient, is a task that is absent.
    - ``features``: what the trunk returned, and all losses were made of: a tensor or a nesting of tensors.
    - ``heads``: a module, or the tensors, that get the gradients of their own losses; None finds all that the losses
      depend on without the features in between.
    - ``rule``, ``scale``, ``loss_scale`` and several ranks: as in :class:`mtl.Balance`.

    Every head's graph is alive until its backward; :class:`mtl.Cut` keeps one head's at a time. Trunk and heads may be
    in DistributedDataParallel, each or both as one, which then must not have find_unused_parameters: what it returns is
    not what its heads have read. ValueError for losses that are no scalars, features without a gradient, and a trunk
    that the losses reach by another way than the features.
    """
    by_task, leaves = _by_task(losses), _leaves(features)
    graphs = {task: _graph([loss], leaves) for task, loss in by_task.items() if loss is not None}
    reached = list(dict.fromkeys(t for graph in graphs.values() for t in graph.tensors))
    own = reached if heads is None else _given(heads)
    trunk = set(_graph(leaves, ()).tensors)
    both = [list(tensor.shape) for tensor in (*reached, *own) if tensor in trunk]
    if both:
        raise ValueError(
            f"The losses reach tensors of the trunk of shape {both[0]} by another way than the features; hand over all "
            "that the heads read as features."
        )
    layer = Balance(rule, list(by_task), scale, loss_scale=loss_scale)
    layer.losses({task: loss for task, loss in by_task.items() if loss is not None})
    with _without_hooks([*leaves, *own]):
        gradients = _gradients(by_task, graphs, [*leaves, *own])
    direction = layer.combine([task[: len(leaves)] for task in gradients], leaves)
    sums = [_sum(column) for column in list(zip(*gradients, strict=True))[len(leaves) :]]
    pairs = [(t, g) for t, g in zip([*leaves, *own], [*direction, *sums], strict=True) if g is not None]
    # Also for the heads, so that hooks see the gradients of their parameters, as DistributedDataParallel's do.
    torch.autograd.backward([tensor for tensor, _ in pairs], [gradient for _, gradient in pairs])
    assert layer.last is not None
    return layer.last


def weights_of(
    losses: Losses,
    features: Any,
    rule: nn.Module,
    scale: float | str = 1.0,
    loss_scale: LossScaler | float = 1.0,
) -> Any:
    """The rule's weights, times ``scale``, as a dict or list of floats as ``losses`` is one; 0 for an absent task.

    Nothing is added to any ``.grad`` and the graph stays alive, so that somebody else's backward can do the rest. In
    the sum ``w_i L_i`` the heads' gradients are multiplied by the weights as well. Arguments and errors are those of
    :func:`backward`, but that the losses may reach the trunk by another way as well; ValueError also for a rule on
    rows, whose direction is no weighted sum.
    """
    if getattr(rule, "needs_rows", False):
        raise ValueError(f"{type(rule).__name__} makes a direction of the rows, and no weights; use mtl.backward.")
    by_task, leaves = _by_task(losses), _leaves(features)
    layer = Balance(rule, list(by_task), scale, loss_scale=loss_scale)
    layer.losses({task: loss for task, loss in by_task.items() if loss is not None})
    with _without_hooks(leaves):
        gradients = _gradients(by_task, None, leaves)
    layer.combine(gradients, leaves)
    assert layer.last is not None
    weights = {task: layer.last.weights.get(task, 0.0) for task in by_task}
    return weights if isinstance(losses, Mapping) else list(weights.values())


class _Graph(NamedTuple):
    """The ``nodes`` of a graph of autograd, and the ``tensors`` at its end whose gradients are accumulated."""

    nodes: set[Any]
    tensors: list[Tensor]


def _graph(outputs: Iterable[Tensor], ends: Sequence[Tensor]) -> _Graph:
    """What ``outputs`` were made of, as far as the tensors ``ends``, which are no part of it."""
    stop = {_edge(end) for end in ends}
    found: set[Any] = set()
    seen: set[Any] = set()
    tensors = []
    stack: list[Any] = [_edge(output) for output in outputs]
    while stack:
        edge = stack.pop()
        node = edge[0]
        if node is None or edge in stop or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            tensors.append(node.variable)
            continue  # it keeps nothing for the backward, and may be of several heads
        found.add(node)
        stack += node.next_functions
    return _Graph(found, tensors)


def _gradients(
    losses: Mapping[str, Tensor | None], graphs: Mapping[str, _Graph] | None, inputs: Sequence[Tensor]
) -> list[Sequence[Tensor | None]]:
    """Each loss's gradients at the ``inputs``; frees its graph unless a later loss needs it or ``graphs`` is None."""
    gradients: list[Sequence[Tensor | None]] = []
    for number, (task, loss) in enumerate(losses.items()):
        if loss is None:
            gradients.append([None] * len(inputs))
            continue
        later = [graphs[name] for name in list(losses)[number + 1 :] if name in graphs] if graphs else []
        keep = graphs is None or any(not graph.nodes.isdisjoint(graphs[task].nodes) for graph in later)
        gradients.append(torch.autograd.grad(loss, inputs, retain_graph=keep, allow_unused=True))
    return gradients


@contextmanager
def _without_hooks(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Leave out the hooks of Tensor.register_hook: they are for what the backward sends, which comes later."""
    hooks = [hooks for tensor in tensors if (hooks := tensor._backward_hooks)]
    kept = [dict(own) for own in hooks]
    try:
        for own in hooks:
            own.clear()
        yield
    finally:
        for own, before in zip(hooks, kept, strict=True):
            own.update(before)


def _sum(gradients: Iterable[Tensor | None]) -> Tensor | None:
    total: Tensor | None = None
    for gradient in gradients:
        if gradient is not None:
            total = gradient if total is None else total + gradient
    return total


def _by_task(losses: Losses) -> dict[str, Tensor | None]:
    """The losses by task, None for an absent one."""
    pairs = losses.items() if isinstance(losses, Mapping) else ((str(i), loss) for i, loss in enumerate(losses))
    by_task = {task: loss if isinstance(loss, Tensor) and loss.requires_grad else None for task, loss in pairs}
    for task, loss in by_task.items():
        if loss is not None and loss.numel() != 1:
            raise ValueError(f"The loss of {task} must be one number, not a tensor of shape {list(loss.shape)}.")
    if not any(loss is not None for loss in by_task.values()):
        raise ValueError(f"losses={losses} must have at least one loss that needs a gradient.")
    return by_task


def _leaves(features: Any) -> list[Tensor]:
    """The different tensors of the features; ValueError unless each has a gradient of its own."""
    found = pytree.tree_leaves(features)
    check_features(found)
    # Of two that are the same, the gradient belongs to the one tensor that they are.
    by_edge = {_edge(leaf): leaf for leaf in found if isinstance(leaf, Tensor) and leaf.requires_grad}
    if not by_edge:
        raise ValueError("The features need a gradient: hand over what the trunk returned, not detached, not frozen.")
    stack = [edge for node, _ in by_edge for edge in node.next_functions]
    seen: set[Any] = set()
    while stack:
        edge = stack.pop()
        if edge in by_edge:
            raise ValueError(
                f"Features of shape {list(by_edge[edge].shape)} are what others of them were made of, so that their "
                "gradient would count twice; hand over what none of the others comes from, or use mtl.Balance."
            )
        if edge[0] is not None and edge not in seen:
            seen.add(edge)
            stack += edge[0].next_functions
    return list(by_edge.values())


def _edge(tensor: Tensor) -> Any:
    return tuple(get_gradient_edge(tensor)[:2])


def _given(heads: nn.Module | Iterable[Tensor]) -> list[Tensor]:
    tensors = heads.parameters() if isinstance(heads, nn.Module) else heads
    return [tensor for tensor in tensors if tensor.requires_grad]
