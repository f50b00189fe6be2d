"""The Gram matrix of rows of any length, exact to float32's own rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from mtl.gradients.transfer import widest

# A float32 sum over 2^24 products is wrong by 4e-3, and bfloat16 rows drift after a few thousand: products are
# summed in float32 over BLOCK elements only, and the blocks in float64. CHUNK elements at a time fit the cache,
# which makes this faster than one matmul as well.
BLOCK = 1024
CHUNK = 64 * BLOCK
LAUNCHED = 16 * CHUNK  # at a time on other devices, where a launch costs more than the cache gains


Pieces = Callable[[], Iterable[Tensor]]  # rows that lie side by side in matrices [K, n_i]


def gram(*pieces: Pieces) -> Tensor:
    """The Gram matrix of rows in ``pieces``; see Rows.gram. Of several kinds, the product element by element."""
    return grams([pieces])[0]


def grams(rows: Sequence[Sequence[Pieces]]) -> list[Tensor]:
    """The Gram matrices of several sets of ``rows``, each as ``gram`` of its pieces. One copy from the device."""
    kinds = [kind for own in rows for kind in own]
    totals = torch.stack([_summed(kind, torch.float32) for kind in kinds]).cpu()
    found = []
    for own, total in zip(rows, totals.split([len(own) for own in rows]), strict=True):
        # Elements below 1e-19 or above 1e19 leave float32's range when squared: such rows, and zero rows, which
        # cannot be told from them by their squares, are worth the slower float64 sum.
        if not torch.isfinite(total).all() or (total.diagonal(dim1=1, dim2=2) < 1e-30).any():
            total = torch.stack([_summed(kind, torch.float64) for kind in own]).cpu()
        found.append(total.prod(0))
    return found


def _summed(pieces: Pieces, dtype: torch.dtype) -> Tensor:
    total: Tensor | None = None
    for piece in pieces():
        own = _gram(piece, dtype)
        total = own if total is None else total.add_(own)
    assert total is not None
    return total


def _gram(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Gram matrix of ``rows`` [K, n], multiplied in ``dtype`` or better, summed in float64, if need be by the host."""
    if widest(rows.device) != torch.float64:
        rows = rows.cpu()
    dtype = torch.promote_types(dtype, rows.dtype)
    whole = rows.shape[1] // BLOCK * BLOCK
    rest = rows[:, whole:].to(dtype)
    total = (rest @ rest.T).double()
    for chunk in rows[:, :whole].split(chunk_size(rows.device), 1):
        blocks = chunk.to(dtype).unflatten(1, (-1, BLOCK)).transpose(0, 1)
        total += torch.bmm(blocks, blocks.mT).sum(0, dtype=torch.float64)
    return total


def chunk_size(device: torch.device) -> int:
    """How many elements of each row to multiply at a time."""
    return CHUNK if device.type == "cpu" else LAUNCHED
