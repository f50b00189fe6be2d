"""The collectives of torch.distributed; in a single process each of them returns its argument."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def is_distributed() -> bool:
    """Whether there is a process group of several ranks."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def get_rank() -> int:
    """The rank of this process in the process group; 0 without one. Rank 0 writes the run's files."""
    return dist.get_rank() if is_distributed() else 0


def get_world_size() -> int:
    """The number of ranks in the process group; 1 without one."""
    return dist.get_world_size() if is_distributed() else 1


def all_reduce(values: Tensor) -> Tensor:
    """Sum a tensor over all ranks, in place."""
    if is_distributed():
        dist.all_reduce(values)
    return values


def all_reduce_coalesced(tensors: Sequence[Tensor]) -> None:
    """Sum several tensors over all ranks, in place, with one all_reduce per dtype."""
    if not is_distributed():
        return
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        group = [tensor for tensor in tensors if tensor.dtype == dtype]
        buffer = torch.cat([tensor.flatten() for tensor in group])
        dist.all_reduce(buffer)
        sums = buffer.split([tensor.numel() for tensor in group])
        torch._foreach_copy_(group, [total.view_as(t) for total, t in zip(sums, group, strict=True)])


def barrier() -> None:
    """Wait until every rank is here."""
    any_rank(False)


def any_rank(answer: bool) -> bool:
    """Whether ``answer`` is true on any rank."""
    return bool(all_reduce(torch.tensor(float(answer)))) if is_distributed() else answer


def all_gather_object(value: Any) -> list[Any]:
    """The values of all ranks, in the order of the ranks."""
    values = [value]
    if is_distributed():
        values *= get_world_size()
        dist.all_gather_object(values, value)
    return values


def broadcast_object(value: Any) -> Any:
    """The value of rank 0."""
    values = [value]
    if is_distributed():
        dist.broadcast_object_list(values, src=0)
    return values[0]


def check_same_on_all_ranks(name: str, value: str) -> None:
    """RuntimeError if ``value`` (a digest) differs between ranks."""
    values = all_gather_object(value)
    differing = ", ".join(str(rank) for rank, other in enumerate(values) if other != values[0])
    if differing:
        raise RuntimeError(f"{name} is not the same on every rank: that of rank {differing} differs from rank 0's.")


def waits(module: nn.Module) -> bool:
    """Whether a forward or backward pass through the module communicates, so that every rank must run it."""
    # A mark and not the classes of mtl.distributed.sync_batchnorm, whose import of timm costs seconds.
    return any(isinstance(m, nn.SyncBatchNorm) or getattr(m, "communicates", False) for m in module.modules())
