"""The cut: leaves at the shared features, the rows that land on them, one backward into the trunk.

Source: Gloeckle et al. 2024, "Better & Faster Large Language Models via Multi-token Prediction", figure 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from mtl import distributed

# A float32 sum over 2^24 products is wrong by 4e-3, and bfloat16 rows drift after a few thousand: products are
# summed in float32 over BLOCK elements only, and the blocks in float64. CHUNK elements at a time fit the cache,
# which makes this faster than one matmul as well.
BLOCK = 1024
CHUNK = 64 * BLOCK


class Cut:
    """The features, detached from the trunk, so that every head's gradient stops and is seen here.

    ``features`` may be a tensor or any nesting of tuples, lists and dicts of tensors. Heads run on
    ``cut.features``; call ``land()`` after each head's backward, and ``backward()`` once after the last one: one
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

    def land(self, factor: float = 1.0) -> None:
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

    def land_at_once(self, total: Tensor, rows: Rows | None) -> None:
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
        Call ``land()`` after the last one. Raises what ``positions`` does.
        """
        leaf = self._one_leaf()
        leaf.grad = torch.zeros_like(leaf)
        for part, gradient in zip(sliced(leaf.detach(), count), sliced(leaf.grad, count), strict=True):
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
        if distributed.active():
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


def sliced(tensor: Tensor, count: int, positions: int | None = None) -> tuple[Tensor, ...]:
    """Views of ``count`` slices of a tensor, equal but for rounding.

    ``positions``: how many the features have, where the tensor has a multiple of that.
    """
    axis = position_axis(tensor)
    positions = tensor.shape[axis] if positions is None else positions
    each = tensor.shape[axis] // positions
    return tensor.tensor_split([each * (positions * i // count) for i in range(1, count)], axis)


def push_through(
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


class Rows:
    """One row a task: its gradient with respect to the features (or other ``leaves``), flattened.

    All leaves of one dtype lie side by side in one buffer ``[K, n]``, in float32 or better. A ``Rows`` that is kept
    from step to step keeps its buffers: fresh memory costs eight times the copy into it.
    """

    def __init__(self) -> None:
        self.count = 0
        self._layout: Any = None
        self._sizes: list[tuple[int, torch.dtype, torch.device]] = []  # of each buffer: its n and its kind
        self._buffers: list[Tensor] = []  # made when the first row comes
        self._slots: list[tuple[int, slice, torch.Size]] = []  # of each leaf: its buffer, where in it, its shape

    def start(self, tasks: int, leaves: Sequence[Tensor]) -> Rows:
        """Empty the buffers and have them fit up to ``tasks`` rows over ``leaves``."""
        self.count = 0
        layout = (tasks, [(leaf.shape, leaf.dtype, leaf.device) for leaf in leaves])
        if layout != self._layout:
            self._layout = layout
            kinds = list(dict.fromkeys(map(_kind, leaves)))
            lengths = [0] * len(kinds)
            self._slots = []
            for leaf in leaves:
                i = kinds.index(_kind(leaf))
                self._slots.append((i, slice(lengths[i], lengths[i] + leaf.numel()), leaf.shape))
                lengths[i] += leaf.numel()
            self._sizes = [(n, *kind) for n, kind in zip(lengths, kinds, strict=True)]
            self._buffers = []
        return self

    def append(self, gradients: Sequence[Tensor | None], loss_scale: float = 1.0) -> None:
        """Copy one task's gradients, divided by ``loss_scale``, in as the next row.

        ``None`` is a leaf that the task does not depend on.
        """
        if not self._buffers:
            tasks = self._layout[0]
            self._buffers = [torch.empty(tasks, n, dtype=dtype, device=device) for n, dtype, device in self._sizes]
        for (i, where, shape), gradient in zip(self._slots, gradients, strict=True):
            target = self._buffers[i][self.count, where]
            if gradient is None:
                target.zero_()
            else:
                target.view(shape).copy_(gradient)
                if loss_scale != 1:
                    target.div_(loss_scale)
        self.count += 1

    def scale(self, weights: Sequence[Tensor]) -> None:
        """Multiply each row by its weight, in place."""
        for block in self.blocks():
            for row, weight in zip(block, weights, strict=True):
                row.mul_(weight.to(row.dtype))

    def blocks(self) -> list[Tensor]:
        """The rows as matrices ``[K, n_i]``, side by side: element by element, in the buffers themselves."""
        return [buffer[: self.count] for buffer in self._buffers]

    def row(self, task: int) -> list[Tensor]:
        """Row ``task`` in the shapes of the leaves."""
        return self.shaped([buffer[task] for buffer in self._buffers])

    def shaped(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """Vectors ``[n_i]``, one a block, as tensors in the shapes of the leaves."""
        return [vectors[i][where].view(shape) for i, where, shape in self._slots]

    def gram(self) -> Tensor:
        """The Gram matrix ``[K, K]``, G_ij = <g_i, g_j>, in float64 on the CPU.

        Exact to 1e-6 of its largest diagonal entry for rows of 2^24 elements.
        """
        return gram(self.blocks)

    def whole_gram(self, space: str) -> Tensor:
        """The Gram matrix over all ranks' batches, in ``features``, flattened, or ``features_sum``."""
        return self.batch_summed_gram() if space == "features_sum" else distributed.total(self.gram())

    def batch_summed_gram(self) -> Tensor:
        """The Gram matrix of the rows summed over the batch, the first axis of every leaf; over all ranks' batches."""
        blocks = self.blocks()
        sums = [blocks[i][:, where].unflatten(1, shape).sum(1).flatten(1) for i, where, shape in self._slots]
        distributed.total_of(sums)
        return gram(lambda: sums)

    def combine(self, weights: Tensor) -> list[Tensor]:
        """The direction sum_i w_i g_i for ``weights`` [K], in the shapes of the leaves."""
        return self.shaped([weights.to(block) @ block for block in self.blocks()])

    def places(self, before: int, samples: int) -> list[list[tuple[int, int, int]]]:
        """Where each leaf of each block lies in that leaf of a batch of ``samples``, ``before`` of them earlier ones.

        From where, to where, and how long the whole leaf is, in elements.
        """
        places: list[list[tuple[int, int, int]]] = [[] for _ in self._sizes]
        for i, _, shape in self._slots:
            each = shape[1:].numel()
            places[i].append((before * each, (before + shape[0]) * each, samples * each))
        return places


class OuterRows(Rows):
    """Rows that are outer products, g_k = e_k w_k^T, and are not kept as more than that.

    This is what linear heads with one output leave on features ``[..., D]``: ``errors`` [N, K] are the derivatives of
    the losses by the outputs at each of the N positions, ``weights`` [K, D] the heads'. Then G = (E^T E) ∘ (W W^T).
    """

    def __init__(self, errors: Tensor, weights: Tensor, leaf: Tensor) -> None:
        super().__init__()
        self.start(len(weights), [leaf])
        self.count = len(weights)
        kind = self._sizes[0][1]
        self._errors, self._weights, self._shape = errors.to(kind), weights.to(kind), leaf.shape

    def scale(self, weights: Sequence[Tensor]) -> None:
        """Multiply each row by its weight."""
        self._errors = self._errors * torch.stack(list(weights)).to(self._errors)

    def blocks(self) -> list[Tensor]:
        """The rows as one matrix ``[K, N D]``, made anew."""
        return [torch.stack([self.row(task)[0].flatten() for task in range(self.count)])]

    def row(self, task: int) -> list[Tensor]:
        """Row ``task`` in the shape of the leaf."""
        return [torch.outer(self._errors[:, task], self._weights[task]).view(self._shape)]

    def gram(self) -> Tensor:
        """The Gram matrix ``[K, K]`` in float64 on the CPU, from products that are K wide."""
        return gram(lambda: [self._errors.T]) * gram(lambda: [self._weights])

    def batch_summed_gram(self) -> Tensor:
        """As Rows.batch_summed_gram; over several processes multiplied out, for another one's rows may be plain."""
        errors = self._errors.unflatten(0, self._shape[:-1]).sum(0).reshape(-1, self.count)
        if not distributed.active():
            return gram(lambda: [errors.T]) * gram(lambda: [self._weights])
        sums = (errors.T[:, :, None] * self._weights[:, None]).flatten(1)
        distributed.total_of([sums])
        return gram(lambda: [sums])

    def combine(self, weights: Tensor) -> list[Tensor]:
        """The direction sum_k w_k g_k for ``weights`` [K]."""
        return [(self._errors * weights.to(self._errors) @ self._weights).view(self._shape)]


class ParameterRows:
    """Rows over the trunk's parameters: one tuple of gradients a task, as the backward made them, without a copy.

    Has the methods of Rows that a strategy needs.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = list(parameters)
        self._rows: list[list[Tensor]] = []

    def append(self, gradients: Sequence[Tensor | None]) -> None:
        """Keep one task's gradients as the next row; ``None`` is a parameter that it does not depend on."""
        pairs = zip(self._parameters, gradients, strict=True)
        self._rows.append([torch.zeros_like(p) if g is None else g for p, g in pairs])

    def sum_over_ranks(self) -> None:
        """Make them the whole batch's: unlike those at the features, rows here overlap, so that they must travel."""
        for row in self._rows:
            distributed.total_of(row)

    def blocks(self) -> list[Tensor]:
        """The rows as matrices ``[K, n_i]``, one a parameter: a copy of them all."""
        return [torch.stack([g.flatten() for g in column]) for column in zip(*self._rows, strict=True)]

    def shaped(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """Vectors ``[n_i]``, one a parameter, in the parameters' shapes and order in memory."""
        return [_laid_out_as(p, vector) for vector, p in zip(vectors, self._parameters, strict=True)]

    def gram(self) -> Tensor:
        """The Gram matrix ``[K, K]`` in float64 on the CPU; see Rows.gram."""
        return gram(self._pieces)

    def combine(self, weights: Tensor) -> list[Tensor]:
        """The direction sum_i w_i g_i for ``weights`` [K], in the parameters' shapes."""
        directions = [torch.zeros_like(p) for p in self._parameters]
        for row, weight in zip(self._rows, weights.tolist(), strict=True):
            torch._foreach_add_(directions, row, alpha=weight)
        return directions

    def _pieces(self) -> Iterator[Tensor]:
        # Stacked a cache full at a time: a stack of the whole would double the memory and the time.
        for column in zip(*self._rows, strict=True):
            flat = [gradient.flatten() for gradient in column]
            for start in range(0, len(flat[0]), CHUNK):
                yield torch.stack([vector[start : start + CHUNK] for vector in flat])


def gram(pieces: Callable[[], Iterable[Tensor]]) -> Tensor:
    """The Gram matrix of rows that lie side by side in ``pieces`` [K, n_i]; see Rows.gram."""

    def summed(dtype: torch.dtype) -> Tensor:
        total: Tensor | None = None
        for piece in pieces():
            own = _gram(piece, dtype)
            total = own if total is None else total.add_(own)
        assert total is not None
        return total.cpu()

    total = summed(torch.float32)
    # Elements below 1e-19 or above 1e19 leave float32's range when squared: such rows, and zero rows, which
    # cannot be told from them by their squares, are worth the slower float64 sum.
    if not torch.isfinite(total).all() or (total.diagonal() < 1e-30).any():
        total = summed(torch.float64)
    return total


def _laid_out_as(parameter: Tensor, flat: Tensor) -> Tensor:
    """A row-major flat gradient in a parameter's shape and order in memory, which torch's fused optimizers rely on."""
    shaped = flat.view(parameter.shape)
    return shaped if parameter.is_contiguous() else torch.empty_like(parameter).copy_(shaped)


def _kind(leaf: Tensor) -> tuple[torch.dtype, torch.device]:
    return torch.promote_types(leaf.dtype, torch.float32), leaf.device


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
