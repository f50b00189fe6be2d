"""The cut: leaves at the shared features, the rows that land on them, one backward into the trunk.

Source: Gloeckle et al. 2024, "Better & Faster Large Language Models via Multi-token Prediction", figure 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

# A float32 sum over 2^24 products is wrong by 4e-3, and bfloat16 rows drift after a few thousand: products are
# summed in float32 over BLOCK elements only, and the blocks in float64. CHUNK elements at a time fit the cache,
# which makes this faster than one matmul as well.
BLOCK = 1024
CHUNK = 64 * BLOCK


class Cut:
    """The features, detached from the trunk, so that every head's gradient stops and is seen here.

    ``features`` may be a tensor or any nesting of tuples, lists and dicts of tensors. Heads run on
    ``cut.features``; what their backwards leave on the leaves goes on into the trunk by ``cut.backward()``,
    once, whatever the number of heads.

    With ``rows`` given, the gradient of each task is also kept as one row: call ``land()`` after each head's
    backward. The sum that goes into the trunk is formed in the same order either way, so keeping rows
    changes no bit of the training.
    """

    def __init__(self, features: Any, rows: Rows | None = None) -> None:
        flat, self._structure = pytree.tree_flatten(features)
        self._trunk = [t for t in flat if _is_differentiable(t)]
        detached = [t.detach().requires_grad_() if _is_differentiable(t) else t for t in flat]
        self.leaves: list[Tensor] = [t for t in detached if _is_differentiable(t)]
        self.features = pytree.tree_unflatten(detached, self._structure)
        self._rows = rows
        self._sum: list[Tensor | None] = [None] * len(self.leaves)

    def land(self) -> None:
        """Take what the last head's backward left on the leaves as that task's row."""
        if self._rows is None:
            return  # the leaves' own .grad is the accumulator
        gradients = [leaf.grad for leaf in self.leaves]
        self._rows.append(gradients)
        for i, (leaf, gradient) in enumerate(zip(self.leaves, gradients, strict=True)):
            total = self._sum[i]
            if total is None:
                self._sum[i] = gradient
            elif gradient is not None:
                total.add_(gradient)
            leaf.grad = None

    def backward(self, gradients: Sequence[Tensor | None] | None = None) -> None:
        """Send ``gradients`` (default: the sum of all that landed) through the trunk, in one backward.

        A leaf that no head read has no gradient and is left out, and so is a frozen trunk's.
        """
        if gradients is None:
            gradients = self._sum if self._rows is not None else [leaf.grad for leaf in self.leaves]
        pairs = [(z, g) for z, g in zip(self._trunk, gradients, strict=True) if g is not None and z.requires_grad]
        if pairs:
            torch.autograd.backward([z for z, _ in pairs], [g for _, g in pairs])


class Rows:
    """One row a task: its gradient with respect to the features, flattened.

    The rows of every leaf lie in one buffer ``[K, *leaf.shape]`` of the leaf's dtype. A ``Rows`` that is kept
    from step to step keeps its buffers: fresh memory costs eight times the copy into it.
    """

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []
        self.count = 0

    def start(self, tasks: int, leaves: Sequence[Tensor]) -> Rows:
        """Empty the buffers and make them fit up to ``tasks`` rows over ``leaves``."""
        self.count = 0
        wanted = [(tasks, leaf.shape, leaf.dtype, leaf.device) for leaf in leaves]
        if wanted != [(len(b), b.shape[1:], b.dtype, b.device) for b in self._buffers]:
            self._buffers = [torch.empty((k, *s), dtype=t, device=d) for k, s, t, d in wanted]
        return self

    def append(self, gradients: Sequence[Tensor | None]) -> None:
        """Copy one task's gradients in as the next row; ``None`` is a leaf that its head did not read."""
        for buffer, gradient in zip(self._buffers, gradients, strict=True):
            if gradient is None:
                buffer[self.count].zero_()
            else:
                buffer[self.count].copy_(gradient)
        self.count += 1

    def gram(self) -> Tensor:
        """The Gram matrix ``[K, K]``, G_ij = <g_i, g_j>, in float64 on the CPU.

        Exact to 1e-6 of its largest diagonal entry for rows of 2^24 elements.
        """
        blocks = [b[: self.count].flatten(1) for b in self._buffers]
        total = sum((_gram(b, torch.float32) for b in blocks), torch.zeros(self.count, self.count).double()).cpu()
        squares = total.diagonal()
        # Elements below 1e-19 or above 1e19 leave float32's range when squared: such rows, and zero rows,
        # which cannot be told from them by their squares, are worth the slower float64 sum.
        if not torch.isfinite(total).all() or (squares < 1e-30).any():
            total = sum((_gram(b, torch.float64) for b in blocks), torch.zeros_like(total)).cpu()
        return total


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


def _gram(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Gram matrix of ``rows`` [K, n], multiplied in ``dtype`` or better and summed in float64."""
    dtype = torch.promote_types(dtype, rows.dtype)
    whole = rows.shape[1] // BLOCK * BLOCK
    rest = rows[:, whole:].to(dtype)
    total = (rest @ rest.T).double()
    for chunk in rows[:, :whole].split(CHUNK, 1):
        blocks = chunk.to(dtype).unflatten(1, (-1, BLOCK)).transpose(0, 1)
        total += torch.bmm(blocks, blocks.mT).sum(0, dtype=torch.float64)
    return total


def _is_differentiable(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())
