"""torch.distributed's collectives; in a single process each of them returns its argument."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

TIMEOUT = timedelta(minutes=10)  # how long a rank waits for another one that is stuck


def is_distributed() -> bool:
    """Whether this process is one of several."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def get_rank() -> int:
    """Which of the processes this is; 0 is the one that writes."""
    return dist.get_rank() if is_distributed() else 0


def get_world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if is_distributed() else 1


@contextmanager
def process_group() -> Iterator[None]:
    """Meet the other processes that torchrun has started; nothing for a process that is alone, or has met them."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or dist.is_initialized():
        yield
        return
    # The Gram matrix and what is said between ranks is on the CPU, whatever the model is on.
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT)
    yield
    # Not after an error: while the others are still connected they cannot fail, and be taken for the first that did.
    dist.destroy_process_group()


def all_reduce(values: Tensor) -> Tensor:
    """The sum of a tensor over all ranks, in place."""
    if is_distributed():
        dist.all_reduce(values)
    return values


def all_reduce_coalesced(tensors: Sequence[Tensor]) -> None:
    """The sums of some tensors over all ranks, in place, in one buffer a type."""
    for kind in dict.fromkeys(tensor.dtype for tensor in tensors) if is_distributed() else ():
        group = [tensor for tensor in tensors if tensor.dtype == kind]
        buffer = all_reduce(torch.cat([tensor.flatten() for tensor in group]))
        pieces = buffer.split([tensor.numel() for tensor in group])
        torch._foreach_copy_(group, [piece.view_as(t) for piece, t in zip(pieces, group, strict=True)])


def barrier() -> None:
    """Go on when every rank is here."""
    any_rank(False)


def any_rank(answer: bool) -> bool:
    """Whether it is so on one rank at least."""
    return bool(all_reduce(torch.tensor(float(answer)))) if is_distributed() else answer


def all_gather_object(value: Any) -> list[Any]:
    """The value that each rank has, in the ranks' order."""
    values = [value]
    if is_distributed():
        values *= get_world_size()
        dist.all_gather_object(values, value)
    return values


def broadcast_object(value: Any) -> Any:
    """What rank 0 has."""
    values = [value]
    if is_distributed():
        dist.broadcast_object_list(values, src=0)
    return values[0]


def check_same_on_all_ranks(name: str, value: str) -> None:
    """RuntimeError where ``value`` (a digest) is not the same on every rank."""
    values = all_gather_object(value)
    odd = ", ".join(str(number) for number, other in enumerate(values) if other != values[0])
    if odd:
        raise RuntimeError(f"{name} is not the same on every rank: that of rank {odd} differs from rank 0's.")
