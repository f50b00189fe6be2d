"""The stages of a backbone in groups, as the levels of PLE."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

from torch import nn

from mtl.architectures.experts import first_stage
from mtl.architectures.stages import Pyramid, stages


class LevelParts(NamedTuple):
    """Modules whose composition is a backbone, above a ``stem``, which may be None.

    ``last_axis_is_channels``: of the maps between them.
    """

    modules: list[nn.Module]
    last_axis_is_channels: bool = False
    stem: nn.Module | None = None


def levels_of(backbone: nn.Module, count: int, from_stage: int | None = None) -> LevelParts:
    """A backbone as ``count`` modules, with about as many stages each, above the first ``from_stage`` of them.

    ValueError for more levels than stages, and for a pyramid, of which every level would be a part of the features.
    """
    below = first_stage(backbone, from_stage)
    if count == 1 and below == 0:
        return LevelParts([backbone])
    units, read, last_axis_is_channels = stages(backbone, states=True)
    if isinstance(read, Pyramid):
        raise ValueError(
            f"levels={count} needs features of the last stage alone, and no pyramid; use levels=1 and from_stage=0."
        )
    if not 0 <= below < len(units):
        raise ValueError(f"from_stage={below} must be from 0 to {len(units) - 1}: of {len(units)} stages.")
    stem, units = units[:below], units[below:]
    if count > len(units):
        raise ValueError(f"levels={count} must be at most {len(units)}, the stages of the backbone above its stem.")
    bounds = [len(units) * i // count for i in range(count + 1)]
    groups = [nn.Sequential(*units[first:end]) for first, end in pairwise(bounds)]
    modules = [*groups[:-1], LastStages(groups[-1], read)]
    return LevelParts(modules, last_axis_is_channels, nn.Sequential(*stem) if stem else None)


class LastStages(nn.Module):
    """The last stages, and what the backbone reads of them."""

    def __init__(self, units: nn.Module, read: nn.Module) -> None:
        super().__init__()
        self.units, self.read = units, read

    def forward(self, x: Any) -> Any:
        """The backbone's features."""
        return self.read([self.units(x)])
