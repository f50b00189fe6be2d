from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedParameter

from mtl.architectures.columns import ColumnNetwork
from mtl.architectures.stages import channel_axis


class NDDR(ColumnNetwork):
    """Neural discriminative dimensionality reduction: one backbone a task, and layers between them.

    After every stage ``x̃_k = BN(W_k [x_1; …; x_K])``. W_k, a 1×1 convolution without bias, begins as ``same`` times the
    identity on column k and ``other`` times the identity on each other one. The columns begin as copies of one
    backbone. The paper studies learning rates of W up to 1000 times that of the columns: ``optimizer.sharing.lr``.

    Source: Gao et al. 2019, section 3.2. ValueError for a backbone without stages, and for texts and molecules: the
    statistics of the batch would be those of their padding, too.
    """

    def __init__(
        self, backbone: Callable[[], nn.Module], tasks: Sequence[str], same: float = 0.9, other: float = 0.1
    ) -> None:
        super().__init__(backbone, tasks, partial(NDDRLayer, same=same, other=other), states=False)


class NDDRLayer(LazyModuleMixin, nn.Module):
    """``BN(W [x_1; …; x_K])`` over the channels of ``count`` columns, for column ``own``; ``weight`` is ``[C, K C]``.

    The number of channels C is found in the first forward pass.
    """

    cls_to_become = None

    def __init__(self, own: int, count: int, last_axis_is_channels: bool, same: float, other: float) -> None:
        super().__init__()
        self.own, self.count, self.last_axis_is_channels = own, count, last_axis_is_channels
        self.same, self.other = same, other
        self.weight: Any = UninitializedParameter()
        self.norm = nn.LazyBatchNorm1d()

    def initialize_parameters(self, columns: Sequence[Tensor]) -> None:
        """The identity, times ``same`` for the task's own column and ``other`` for those of other tasks."""
        if self.has_uninitialized_params():
            channels = columns[0].shape[channel_axis(columns[0], self.last_axis_is_channels)]
            with torch.no_grad():
                self.weight.materialize((channels, self.count * channels))
                for k, block in enumerate(self.weight.split(channels, 1)):
                    block.copy_((self.same if k == self.own else self.other) * torch.eye(channels))

    def forward(self, columns: Sequence[Tensor]) -> Tensor:
        """The mixture."""
        axis = channel_axis(columns[0], self.last_axis_is_channels)
        x = linear(torch.cat([x.movedim(axis, -1) for x in columns], -1), self.weight)
        return self.norm(x.flatten(0, -2)).view(x.shape).movedim(-1, axis)

    def sharing_parameters(self) -> Iterator[nn.Parameter]:
        """W."""
        yield self.weight
