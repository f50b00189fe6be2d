"""The tasks' gradients as rows: one row a task, at the features or at the trunk's parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mtl.gradients.gram import chunk_size, gram, grams
from mtl.gradients.transfer import send

AllReduce = Callable[[Sequence[Tensor]], None]  # sums tensors over the ranks, in place


class Rows:
    """One row a task: its gradient with respect to the features (or other ``leaves``), flattened.

    All leaves of one dtype lie side by side in one buffer ``[K, n]``, in float32 or better; ``compact``: those of
    bfloat16 in bfloat16, see ``start``. A ``Rows`` that is kept from step to step keeps its buffers: fresh memory costs
    eight times the copy into it.
    """

    def __init__(self) -> None:
        self.count = 0
        self._layout: Any = None
        self._sizes: list[tuple[int, torch.dtype, torch.device]] = []  # of each buffer: its n and its kind
        self._buffers: list[Tensor] = []  # made when the first row comes
        self._slots: list[tuple[int, slice, torch.Size]] = []  # of each leaf: its buffer, where in it, its shape

    def start(self, tasks: int, leaves: Sequence[Tensor], compact: bool = False) -> Rows:
        """Empty the buffers and have them fit up to ``tasks`` rows over ``leaves``.

        ``compact``: the gradient of bfloat16 features is bfloat16, and its row stays so, in half the memory. Products
        and sums of such rows are those of rows in float32; a direction is rounded once. They cannot be scaled.
        """
        if any(leaf.is_complex() for leaf in leaves):
            raise ValueError("Complex features cannot be compared; hand over torch.view_as_real of them.")
        self.count = 0
        layout = (tasks, compact, [(leaf.shape, leaf.dtype, leaf.device) for leaf in leaves])
        if layout != self._layout:
            self._layout = layout
            kinds = list(dict.fromkeys(_kind(leaf, compact) for leaf in leaves))
            lengths = [0] * len(kinds)
            self._slots = []
            for leaf in leaves:
                i = kinds.index(_kind(leaf, compact))
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
        targets = [self._buffers[i][self.count, where].view(shape) for i, where, shape in self._slots]
        reached = [(t, g) for t, g in zip(targets, gradients, strict=True) if g is not None]
        for target, gradient in zip(targets, gradients, strict=True):
            if gradient is None:
                target.zero_()
        if reached:
            own = [target for target, _ in reached]
            torch._foreach_copy_(own, [gradient for _, gradient in reached])
            if loss_scale != 1:
                assert all(t.dtype != torch.bfloat16 for t in own), "compact rows cannot be scaled"
                torch._foreach_div_(own, loss_scale)
        self.count += 1

    def scale(self, weights: Sequence[Tensor]) -> None:
        """Multiply each row by its weight, in place."""
        for block in self.blocks():
            assert block.dtype != torch.bfloat16, "compact rows cannot be scaled"
            for row, weight in zip(block, weights, strict=True):
                row.mul_(weight.to(row.dtype))

    def blocks(self) -> list[Tensor]:
        """The rows as matrices ``[K, n_i]``, side by side: element by element, in the buffers themselves."""
        return [buffer[: self.count] for buffer in self._buffers]

    def row(self, task: int) -> list[Tensor]:
        """Row ``task`` in the shapes of the leaves."""
        return self.unflatten([buffer[task] for buffer in self._buffers])

    def unflatten(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """Vectors ``[n_i]``, one a block, as tensors in the shapes of the leaves."""
        return [vectors[i][where].view(shape) for i, where, shape in self._slots]

    def gram(self) -> Tensor:
        """The Gram matrix ``[K, K]``, G_ij = <g_i, g_j>, in float64 on the CPU.

        Exact to 1e-6 of its largest diagonal entry for rows of 2^24 elements.
        """
        return gram(self.blocks)

    def batch_summed_gram(self, all_reduce: AllReduce | None = None) -> Tensor:
        """The Gram matrix of the rows summed over the batch, the first axis of every leaf; over all ranks' batches."""
        blocks = self.blocks()
        parts = [(blocks[i][:, where].unflatten(1, shape), _wide(blocks[i])) for i, where, shape in self._slots]
        sums = [part.sum(1, dtype=wide).flatten(1) for part, wide in parts]
        if all_reduce is not None:
            all_reduce(sums)
        return gram(lambda: sums)

    def combine(self, weights: Tensor) -> list[Tensor]:
        """The direction sum_i w_i g_i for ``weights`` [K], in the shapes of the leaves."""
        return self.unflatten([_combined(send(weights, b.device, _wide(b)), b) for b in self.blocks()])

    def offsets_in_batch(self, before: int, samples: int) -> list[list[tuple[int, int, int]]]:
        """The elements of every leaf, block by block, in the same leaf of a batch of ``samples``: (start, end, length).

        ``before``: the samples of that batch which come before those of these rows.
        """
        offsets: list[list[tuple[int, int, int]]] = [[] for _ in self._sizes]
        for i, _, shape in self._slots:
            each = shape[1:].numel()
            offsets[i].append((before * each, (before + shape[0]) * each, samples * each))
        return offsets


class OuterProductRows(Rows):
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
        return gram(lambda: [self._errors.T], lambda: [self._weights])

    def batch_summed_gram(self, all_reduce: AllReduce | None = None) -> Tensor:
        """As Rows.batch_summed_gram. The rows of another rank may be plain, so what is reduced is multiplied out."""
        errors = self._errors.unflatten(0, self._shape[:-1]).sum(0).reshape(-1, self.count)
        if all_reduce is None:
            return gram(lambda: [errors.T], lambda: [self._weights])
        sums = (errors.T[:, :, None] * self._weights[:, None]).flatten(1)
        all_reduce([sums])
        return gram(lambda: [sums])

    def combine(self, weights: Tensor) -> list[Tensor]:
        """The direction sum_k w_k g_k for ``weights`` [K]."""
        weights = send(weights, self._errors.device, self._errors.dtype)
        return [(self._errors * weights @ self._weights).view(self._shape)]


class ParameterRows:
    """Rows over the trunk's parameters: one list of gradients a task, as the backward made them, without a copy."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = list(parameters)
        self._rows: list[list[Tensor]] = []

    def select(self, places: Sequence[int]) -> ParameterRows:
        """The rows over some of the parameters, by their places; no gradient is copied."""
        own = ParameterRows([self._parameters[place] for place in places])
        own._rows = [[row[place] for place in places] for row in self._rows]
        return own

    def append(self, gradients: Sequence[Tensor | None]) -> None:
        """Keep one task's gradients as the next row; ``None`` is a parameter that it does not depend on."""
        pairs = zip(self._parameters, gradients, strict=True)
        self._rows.append([torch.zeros_like(p) if g is None else g for p, g in pairs])

    def all_reduce(self, all_reduce: AllReduce | None) -> None:
        """Sum every row over the ranks: unlike rows at the features, all ranks' rows are about the same elements."""
        if all_reduce is not None:
            for row in self._rows:
                all_reduce(row)

    def blocks(self) -> list[Tensor]:
        """The rows as matrices ``[K, n_i]``, one a parameter: a copy of them all."""
        return [torch.stack([g.flatten() for g in column]) for column in zip(*self._rows, strict=True)]

    def row(self, task: int) -> list[Tensor]:
        """Row ``task`` in the parameters' shapes."""
        return self._rows[task]

    def unflatten(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """Vectors ``[n_i]``, one a parameter, in the parameters' shapes and order in memory."""
        return [_laid_out_as(p, vector) for vector, p in zip(vectors, self._parameters, strict=True)]

    def gram(self) -> Tensor:
        """The Gram matrix ``[K, K]`` in float64 on the CPU; see Rows.gram."""
        return gram(self._pieces)

    def combine(self, weights: Tensor) -> list[Tensor]:
        """The direction sum_i w_i g_i for ``weights`` [K], in the parameters' shapes."""
        directions = [torch.empty_like(p) for p in self._parameters]
        torch._foreach_zero_(directions)
        for row, weight in zip(self._rows, weights.tolist(), strict=True):
            torch._foreach_add_(directions, row, alpha=weight)
        return directions

    def _pieces(self) -> Iterator[Tensor]:
        # Stacked a cache full at a time: a stack of the whole would double the memory and the time.
        for places in _runs(self._parameters):
            flat = [[row[place].flatten() for place in places] for row in self._rows]
            if len(places) > 1:  # no longer together than one stack
                yield torch.cat([gradient for own in flat for gradient in own]).view(len(flat), -1)
                continue
            size = chunk_size(flat[0][0].device)
            for start in range(0, len(flat[0][0]), size):
                yield torch.stack([own[0][start : start + size] for own in flat])


def parameter_grams(rows: Sequence[ParameterRows]) -> list[Tensor]:
    """The Gram matrix of each of several rows, in one copy from the device."""
    return grams([[own._pieces] for own in rows])


def _runs(parameters: Sequence[Tensor]) -> list[list[int]]:
    """The places of neighbours that are small enough to be multiplied together: a launch costs more than their product.

    On the CPU, where nothing is launched, every parameter alone.
    """
    runs: list[list[int]] = []
    kind, length = None, 0
    for place, p in enumerate(parameters):
        length += p.numel()
        joins = p.device.type != "cpu" and (p.dtype, p.device) == kind and length <= chunk_size(p.device)
        if joins:
            runs[-1].append(place)
        else:
            runs.append([place])
            kind, length = (p.dtype, p.device), p.numel()
    return runs


def _laid_out_as(parameter: Tensor, flat: Tensor) -> Tensor:
    """A row-major flat gradient in a parameter's shape and order in memory, which torch's fused optimizers rely on."""
    shaped = flat.view(parameter.shape)
    return shaped if parameter.is_contiguous() else torch.empty_like(parameter).copy_(shaped)


def _kind(leaf: Tensor, compact: bool) -> tuple[torch.dtype, torch.device]:
    # Not so float16: its loss scale is divided out of the rows, and what is left may be too small for it.
    return leaf.dtype if compact and leaf.dtype == torch.bfloat16 else _wide(leaf), leaf.device


def _wide(values: Tensor) -> torch.dtype:
    return torch.promote_types(values.dtype, torch.float32)


def _combined(weights: Tensor, rows: Tensor) -> Tensor:
    """The sum of rows [K, n] times their weights, in the weights' precision; rounded once to the rows' own."""
    if rows.dtype == weights.dtype:
        return weights @ rows
    direction = torch.empty_like(rows[0])
    size = chunk_size(rows.device)
    for own, chunk in zip(direction.split(size), rows.split(size, 1), strict=True):
        own.copy_(weights @ chunk.to(weights.dtype))
    return direction
