from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_max_pool2d

from mtl.architectures.lazy import Lazy
from mtl.architectures.stages import Stages, stages
from mtl.backbones.timm import as_map


class MTAN:
    """Multi-task attention network: task k's head reads ``a_k^j ⊙ p^j``, the maps of stage j under a mask of its own.

    - ``a_k^j = h([u^j; f^j(a_k^{j-1} ⊙ p^{j-1})])``; that of the first stage reads ``u^1`` alone;
    - p^j is the output of stage j, u^j what its last block reads; p^j itself, where the stage has one block or changes
      the resolution in the last;
    - h: two 1×1 convolutions, the first to a ``reduction``-th of the channels, each with batch normalisation, under
      ReLU and the logistic function;
    - f^j: a 3×3 convolution to the channels of p^{j+1}, batch normalisation and ReLU, pooled by maxima to its size;
      one for all tasks with ``share_refine``, as in the authors' code.

    The stages are the trunk, so that the masks of one task are alive at a time under every strategy but naive. On
    ``features=pyramid`` heads get all masked maps; otherwise what the backbone makes of the last.

    Source: Liu et al. 2019, equations 1 and 2. ValueError for a backbone without stages, or whose stages give no maps.
    """

    def __init__(
        self,
        backbone: Callable[[], nn.Module],
        tasks: Sequence[str],
        share_refine: bool = True,
        reduction: int = 4,
    ) -> None:
        if reduction < 1:
            raise ValueError(f"reduction={reduction} must be 1 or more.")
        self._stages, self._reduction = stages(backbone()), reduction
        self.trunk = Maps(self._stages)
        self._refine = self._make_refine() if share_refine else None

    def reader(self, task: str) -> nn.Module:
        """The masks of a task."""
        refine = self._make_refine() if self._refine is None else self._refine
        return Attention(self._stages, self._reduction, refine)

    def _make_refine(self) -> nn.ModuleList:
        return nn.ModuleList(Lazy(_make_f) for _ in self._stages.units[1:])


class Maps(nn.Module):
    """Inputs -> ``before``, u^j, and ``after``, p^j, of every stage j, as maps ``[B, C, H, W]``."""

    def __init__(self, parts: Stages) -> None:
        super().__init__()
        self.units, self.last_axis_is_channels = nn.ModuleList(parts.units), parts.last_axis_is_channels

    def forward(self, inputs: Any) -> dict[str, list[Tensor | None]]:
        """The common features; None in ``before`` where a stage has no such map."""
        before: list[Tensor | None] = []
        after: list[Tensor | None] = []
        x = inputs
        for number, unit in enumerate(self.units, 1):
            blocks = list(unit.children())
            for block in blocks[:-1]:
                x = block(x)
            u, x = (x if len(blocks) > 1 else None), blocks[-1](x)
            if x.dim() != 4:
                raise ValueError(
                    f"MTAN attends to maps [B, C, H, W], and stage {number} of the backbone gives {list(x.shape)}; use "
                    "a convolutional backbone."
                )
            p = as_map(x, self.last_axis_is_channels)
            u = None if u is None or u.dim() != 4 else as_map(u, self.last_axis_is_channels)
            before.append(u if u is not None and u.shape[2:] == p.shape[2:] else None)
            after.append(p)
        return {"before": before, "after": after}


class Attention(nn.Module):
    """The features of one task: what the backbone would return if its stages had given the masked maps."""

    def __init__(self, parts: Stages, reduction: int, refine: nn.ModuleList) -> None:
        super().__init__()
        self.masks = nn.ModuleList(Lazy(partial(_make_h, reduction)) for _ in parts.units)
        self.refine, self.read = refine, copy.deepcopy(parts.read)
        self.last_axis_is_channels = parts.last_axis_is_channels

    def forward(self, features: Mapping[str, Sequence[Any]]) -> Any:
        """What one backbone would return."""
        before, after = features["before"], features["after"]
        masked: list[Tensor] = []
        for j, (mask, u, p) in enumerate(zip(self.masks, before, after, strict=True)):
            read = p if u is None else u
            if j:
                refined = self.refine[j - 1](masked[-1], p)
                read = torch.cat([read, adaptive_max_pool2d(refined, p.shape[2:])], 1)
            masked.append(mask(read, p) * p)
        return self.read([x.permute(0, 2, 3, 1) if self.last_axis_is_channels else x for x in masked])


def _make_h(reduction: int, x: Tensor, p: Tensor) -> nn.Module:
    channels = p.shape[1]
    narrow = max(1, channels // reduction)
    first = nn.Conv2d(x.shape[1], narrow, 1, bias=False), nn.BatchNorm2d(narrow), nn.ReLU()
    return nn.Sequential(*first, nn.Conv2d(narrow, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.Sigmoid())


def _make_f(x: Tensor, p: Tensor) -> nn.Module:
    channels = p.shape[1]
    return nn.Sequential(nn.Conv2d(x.shape[1], channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
