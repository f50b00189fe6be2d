"""The cut: leaves at the shared features, and one backward into the trunk.

Source: Gloeckle et al. 2024, "Better & Faster Large Language Models via Multi-token Prediction", figure 2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from mtl.distributed.collectives import is_distributed
from mtl.gradients.rows import Rows


class Cut:
    """The features, detached from the trunk, so that every head's gradient stops and is seen here.

    ``features`` may be a tensor or any nesting of tuples, lists and dicts of tensors. Heads run on
    ``cut.features``; call ``collect()`` after each head's backward, and ``backward()`` once after the last one: one
    backward through the trunk, whatever the number of heads.

    With ``rows`` given, the gradient of each task is also kept as one row. The sum that goes into the trunk is
    formed in the same order either way, so keeping rows changes no bit of the training.

    ``loss_scale``: what all that lands here was multiplied by, so that float16 can hold it. Rows have it divided out;
    what goes into the trunk has it, and so have the trunk's gradients.
    """

    def __init__(self, features: Any, rows: Rows | None = None, loss_scale: float = 1.0) -> None:
        flat, structure = pytree.tree_flatten(features)
        self.trunk: list[Tensor] = [t for t in flat if _is_differentiable(t)]
        detached = [t.detach().requires_grad_() if _is_differentiable(t) else t for t in flat]
        self.leaves: list[Tensor] = [t for t in detached if _is_differentiable(t)]
        self.features = pytree.tree_unflatten(detached, structure)
        self.rows, self._loss_scale = rows, loss_scale
        self._sum: list[Tensor | None] = [None] * len(self.leaves)

    def collect(self, factor: float = 1.0) -> None:
        """Take what the last head's backward left on the leaves, and add ``factor`` times it to the sum."""
        gradients = [leaf.grad for leaf in self.leaves]
        if self.rows is not None:
            self.rows.append(gradients, self._loss_scale)
        for i, (leaf, gradient) in enumerate(zip(self.leaves, gradients, strict=True)):
            leaf.grad = None
            total = self._sum[i]
            if gradient is not None:
                gradient = gradient if factor == 1 else gradient.mul_(factor)
                self._sum[i] = gradient if total is None else total.add_(gradient)

    def collect_all(self, total: Tensor, rows: Rows | None) -> None:
        """Take all tasks' gradients on the only leaf at once: their sum, and the rows if they are kept."""
        self._sum, self.rows = [total], rows

    @property
    def positions(self) -> int:
        """How many positions the features have; ValueError where they are not one ``[B, T, D]`` or ``[B, C, H, W]``."""
        leaf = self._one_leaf()
        return leaf.shape[position_axis(leaf)]

    def _one_leaf(self) -> Tensor:
        if len(self.leaves) != 1 or self.leaves[0].dim() not in (3, 4):
            shapes = [list(leaf.shape) for leaf in self.leaves]
            raise ValueError(
                f"Only features that are one tensor [B, T, D] or [B, C, H, W] have positions, not {shapes}."
            )
        return self.leaves[0]

    def slices(self, count: int) -> Iterator[Tensor]:
        """The features in ``count`` slices of their positions, one after the other, each a leaf of its own.

        What is left on it when the next one is asked for is that part of the whole's gradient, zero if there is none.
        Call ``collect()`` after the last one. Raises what ``positions`` does.
        """
        leaf = self._one_leaf()
        leaf.grad = torch.zeros_like(leaf)
        for part, gradient in zip(
            split_positions(leaf.detach(), count), split_positions(leaf.grad, count), strict=True
        ):
            part = part.contiguous().requires_grad_()  # as heads get the whole
            yield part
            if part.grad is not None:
                gradient.copy_(part.grad)

    def backward(self, direction: Sequence[Tensor] | None = None) -> None:
        """Send ``direction`` (default: the sum of what landed) through the trunk, in one backward.

        A leaf that no head read has no gradient and is left out, and so is a frozen trunk's. With more than one process
        it gets zeros: every process must pass through the whole trunk, or the others would wait for it.
        """
        if direction is None:
            gradients, self._sum = self._sum, [None] * len(self._sum)
        else:
            gradients = [_scaled(g, z, self._loss_scale) for z, g in zip(self.trunk, direction, strict=True)]
        if is_distributed():
            gradients = [torch.zeros_like(z) if g is None else g for z, g in zip(self.trunk, gradients, strict=True)]
        reached = [
            i for i, (z, g) in enumerate(zip(self.trunk, gradients, strict=True)) if g is not None and z.requires_grad
        ]
        if reached:
            handed = [gradients[i] for i in reached]
            del gradients
            _Handover.apply(handed, *(self.trunk[i] for i in reached)).backward()


class _Handover(torch.autograd.Function):
    """Gives the trunk the gradients of its outputs and keeps none of them.

    Those that torch.autograd.backward is given stay alive until it has gone through the whole trunk.
    """

    @staticmethod
    def forward(ctx: Any, gradients: list[Tensor], *outputs: Tensor) -> Tensor:
        ctx.gradients = gradients
        return outputs[0].new_zeros((), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        given = tuple(ctx.gradients)
        ctx.gradients.clear()
        return None, *given


def position_axis(tensor: Tensor) -> int:
    """Where the positions are: axis 1 of ``[B, T, ...]``, the rows, axis 2, of maps ``[B, C, H, W]``."""
    return 2 if tensor.dim() == 4 else 1


def split_positions(tensor: Tensor, count: int, positions: int | None = None) -> tuple[Tensor, ...]:
    """Views of ``count`` slices of a tensor, equal but for rounding.

    ``positions``: how many the features have, where the tensor has a multiple of that.
    """
    axis = position_axis(tensor)
    positions = tensor.shape[axis] if positions is None else positions
    each = tensor.shape[axis] // positions
    return tensor.tensor_split([each * (positions * i // count) for i in range(1, count)], axis)


def trunk_vjp(
    trunk: Sequence[Tensor],
    gradients: Sequence[Tensor],
    parameters: Sequence[Tensor],
    keep_graph: bool = True,
    loss_scale: float = 1.0,
) -> tuple:
    """One vector-Jacobian product: ``gradients`` at the trunk's output, as they are at its parameters.

    None for a parameter that the features do not depend on. ``keep_graph``: there will be another one. On its way
    through the trunk the vector is multiplied by ``loss_scale``.
    """
    pairs = [(z, _scaled(g, z, loss_scale)) for z, g in zip(trunk, gradients, strict=True) if z.requires_grad]
    outputs, vectors = [z for z, _ in pairs], [g for _, g in pairs]
    pushed = torch.autograd.grad(outputs, parameters, vectors, retain_graph=keep_graph, allow_unused=True)
    return pushed if loss_scale == 1 else tuple(None if g is None else g.div_(loss_scale) for g in pushed)


def _scaled(gradient: Tensor, output: Tensor, loss_scale: float) -> Tensor:
    return (gradient if loss_scale == 1 else gradient * loss_scale).to(output.dtype)


def as_seen_by_heads(features: Any) -> tuple[Any, list[Tensor]]:
    """The features as tensors of their own in the graph, and their leaves; nothing is cut.

    A gradient with respect to these comes from the heads alone: one with respect to a level of a pyramid itself would
    also come through the trunk, from the levels above it. A frozen trunk's features get a gradient to measure.
    """
    flat, structure = pytree.tree_flatten(features)
    flat = [_alias(value) if _is_differentiable(value) else value for value in flat]
    return pytree.tree_unflatten(flat, structure), [value for value in flat if _is_differentiable(value)]


def _alias(value: Tensor) -> Tensor:
    return value.view_as(value) if value.requires_grad else value.detach().requires_grad_()


def _is_differentiable(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())
