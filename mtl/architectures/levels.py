"""The stages of a backbone in groups, as the levels of PLE."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

from torch import nn

from mtl.architectures.stages import Pyramid, stages


class LevelParts(NamedTuple):
    """Modules whose composition is a backbone; ``last_axis_is_channels``: of the maps between them."""

    modules: list[nn.Module]
    last_axis_is_channels: bool = False


def levels_of(backbone: nn.Module, count: int) -> LevelParts:
    """A backbone as ``count`` modules, with about as many stages each.

    ValueError for more levels than stages, and for a pyramid, of which every level would be a part of the features.
    """
    if count == 1:
        return LevelParts([backbone])
    units, read, last_axis_is_channels = stages(backbone)
    if isinstance(read, Pyramid):
        raise ValueError(f"levels={count} needs features of the last stage alone, and no pyramid; use levels=1.")
    if count > len(units):
        raise ValueError(f"levels={count} must be at most {len(units)}, the stages of the backbone.")
    bounds = [len(units) * i // count for i in range(count + 1)]
    groups = [nn.Sequential(*units[first:end]) for first, end in pairwise(bounds)]
    return LevelParts([*groups[:-1], LastStages(groups[-1], read)], last_axis_is_channels)


class LastStages(nn.Module):
    """The last stages, and what the backbone reads of them."""

    def __init__(self, units: nn.Module, read: nn.Module) -> None:
        super().__init__()
        self.units, self.read = units, read

    def forward(self, x: Any) -> Any:
        """The backbone's features."""
        return self.read([self.units(x)])
