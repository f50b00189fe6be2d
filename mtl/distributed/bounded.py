"""Sums over the ranks in anybody's program: each rank waits a bounded time, and the error names the ranks that lack."""

from __future__ import annotations

import time
import zlib
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mtl.distributed.collectives import get_rank, get_world_size, is_distributed
from mtl.distributed.ranks import TIMEOUT

GRACE = 5.0  # seconds in which the ranks that have waited in vain tell each other that they are there

_groups: dict[Any, _Group] = {}


class _Group:
    """A gloo group of all ranks, beside the default one: it has CPU tensors, and no other collective in between."""

    def __init__(self) -> None:
        self.sums = 0
        self.store: Any = dist.distributed_c10d._get_default_store()
        self._group: Any = None

    def sum(self, values: Tensor, place: str) -> Tensor:
        """Sum in place; RuntimeError that names the ranks that have not come to the same sum in time."""
        self.sums += 1
        start, seconds = time.monotonic(), TIMEOUT.total_seconds()
        try:
            if self._group is None:
                self._group = dist.new_group(backend="gloo", timeout=TIMEOUT)
            name = zlib.crc32(place.encode())  # a sum with another place's would be a wrong number
            sent = torch.cat([values.flatten(), values.new_tensor([name])])
            dist.all_reduce(sent, group=self._group)
        except (RuntimeError, ValueError) as error:
            raise RuntimeError(
                f"{place} was not reached on {self._absent(start + seconds + GRACE)} within {seconds:g} seconds: every "
                "rank must send a loss backward through it in every step."
            ) from error
        if sent[-1] != get_world_size() * name:
            raise RuntimeError(
                f"The ranks came to {place} and to another layer at once: every rank must send its losses backward "
                "through the same layers, in the same order."
            )
        return values.copy_(sent[:-1].view_as(values))

    def _absent(self, until: float) -> str:
        """The ranks that do not wait here as well; one whose peer has died may come to know it later than others."""
        key = f"mtl/{self.sums}/{{}}".format
        absent = [rank for rank in range(get_world_size()) if rank != get_rank()]
        try:
            self.store.set(key(get_rank()), "")
            while absent and time.monotonic() < until:
                absent = [rank for rank in absent if not self.store.check([key(rank)])]
                time.sleep(0.1)
        except RuntimeError:
            return "every rank (the store is gone, which rank 0 holds)"
        return f"rank {', '.join(map(str, absent))}" if absent else "every rank"


def bounded_all_reduce(values: Tensor, place: str) -> Tensor:
    """Sum a CPU tensor over all ranks, in place; a single process returns it as it is.

    ``place``: what the ranks wait at, as the error names it. RuntimeError where a rank is not there within ``TIMEOUT``.
    """
    if not is_distributed():
        return values
    world = dist.group.WORLD
    if world not in _groups:
        _groups.clear()  # of a default group that was destroyed
        _groups[world] = _Group()
    return _groups[world].sum(values, place)
