from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from mtl.architectures.experts import Stem, distinct, is_mixed, make_experts


class Ensemble:
    """Hard sharing of the mean of ``experts`` backbones: the capacity of a mixture of experts, without its gates.

    The control that MMoE is compared with: what a task gains here it owes to parameters and not to gates.
    ``from_stage`` is MMoE's.
    """

    def __init__(
        self, backbone: Callable[[], nn.Module], tasks: Sequence[str], experts: int = 3, from_stage: int | None = None
    ) -> None:
        self.trunk = Mean(*make_experts(distinct(backbone), experts, from_stage))

    def reader(self, task: str) -> None:
        """None: the heads read the mean, which is what one backbone would return."""
        return


class Mean(nn.Module):
    """The mean of the experts' features."""

    def __init__(self, stem: Stem, experts: nn.ModuleList) -> None:
        super().__init__()
        self.stem, self.experts = stem, experts

    def forward(self, inputs: Any) -> Any:
        """Inputs -> the features of one backbone."""
        below = self.stem(inputs)
        return pytree.tree_map(_mean, *(expert(below) for expert in self.experts))


def _mean(*tensors: Any) -> Any:
    return torch.stack(tensors).mean(0) if is_mixed(tensors[0]) else tensors[0]
