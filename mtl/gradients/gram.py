"""The Gram matrix of rows of any length, exact to float32's own rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

# A float32 sum over 2^24 products is wrong by 4e-3, and bfloat16 rows drift after a few thousand: products are
# summed in float32 over BLOCK elements only, and the blocks in float64. CHUNK elements at a time fit the cache,
# which makes this faster than one matmul as well.
BLOCK = 1024
CHUNK = 64 * BLOCK


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
