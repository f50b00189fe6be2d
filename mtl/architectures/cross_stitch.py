from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedParameter

from mtl.architectures.columns import ColumnNetwork
from mtl.architectures.stages import channel_axis
from mtl.distributed.sharding import full_tensor


class CrossStitch(ColumnNetwork):
    """Cross-stitch networks: one backbone a task, and after every stage ``x̃_k = Σ_j α_kj x_j``.

    α_kj begins at ``same`` for j = k and at ``other`` elsewhere; one number for each channel with ``per_channel``, else
    one for a pair. The columns begin as copies of one backbone, so that their channels correspond; the paper begins
    with networks trained on one task each. α wants a learning rate 100 to 1000 times that of the columns:
    ``optimizer.sharing.lr``.

    Source: Misra et al. 2016, equation 1. ValueError for a backbone without stages.
    """

    def __init__(
        self,
        backbone: Callable[[], nn.Module],
        tasks: Sequence[str],
        same: float = 0.9,
        other: float = 0.1,
        per_channel: bool = True,
    ) -> None:
        super().__init__(backbone, tasks, partial(CrossStitchUnit, same=same, other=other, per_channel=per_channel))


class CrossStitchUnit(LazyModuleMixin, nn.Module):
    """``Σ_j α_j ⊙ x_j`` over ``count`` columns, for the task of column ``own``; ``alpha`` is ``[K, C]``, or ``[K, 1]``.

    The number of channels C is found in the first forward pass.
    """

    cls_to_become = None

    def __init__(
        self, own: int, count: int, last_axis_is_channels: bool, same: float, other: float, per_channel: bool
    ) -> None:
        super().__init__()
        self.own, self.count, self.last_axis_is_channels = own, count, last_axis_is_channels
        self.same, self.other, self.per_channel = same, other, per_channel
        self.alpha: Any = UninitializedParameter()

    def initialize_parameters(self, columns: Sequence[Tensor]) -> None:
        """``same`` for the task's own column, ``other`` for those of other tasks."""
        if self.has_uninitialized_params():
            axis = channel_axis(columns[0], self.last_axis_is_channels)
            with torch.no_grad():
                self.alpha.materialize((self.count, columns[0].shape[axis] if self.per_channel else 1))
                self.alpha.fill_(self.other)
                self.alpha[self.own] = self.same

    def forward(self, columns: Sequence[Tensor]) -> Tensor:
        """The mixture."""
        shape = [1] * columns[0].dim()
        shape[channel_axis(columns[0], self.last_axis_is_channels)] = -1
        mixed = [alpha.view(shape) * x for alpha, x in zip(self.alpha, columns, strict=True)]
        return torch.stack(mixed).sum(0)

    def sharing_parameters(self) -> Iterator[nn.Parameter]:
        """α."""
        yield self.alpha

    def logged(self) -> dict[str, Tensor]:
        """α of each column, averaged over the channels [K]."""
        return {} if self.has_uninitialized_params() else {"alpha": full_tensor(self.alpha.detach()).mean(1)}
