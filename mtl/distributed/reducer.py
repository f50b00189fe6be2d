"""Sums over the ranks in a training step. Whether there are other ranks is asked once, when the Reducer is made."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtl.distributed.collectives import all_reduce, all_reduce_coalesced, get_rank, get_world_size, is_distributed


class Reducer:
    """The sums that a step needs; in a single process each of them returns its argument."""

    def __init__(self) -> None:
        self.is_distributed = is_distributed()
        self.rank, self.world_size = get_rank(), get_world_size()
        self.all_reduce = all_reduce_coalesced if self.is_distributed else None  # for the rows of mtl.gradients

    def sum(self, values: Sequence[float]) -> list[float]:
        """Numbers summed over the ranks, in one transfer."""
        if not self.is_distributed:
            return list(values)
        return all_reduce(torch.tensor(values, dtype=torch.float64)).tolist()

    def sum_losses(self, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """Every task's loss from its parts on the ranks, in one transfer."""
        if not self.is_distributed or not parts:
            return dict(parts)
        return dict(zip(parts, all_reduce(torch.stack(list(parts.values()))).unbind(), strict=True))
