"""Tasks that have inputs of their own: one trunk pass over all of them, and each head on its own samples.

The rows of such tasks lie on different samples: at the features, flattened, any two are orthogonal, whatever the tasks
want of the trunk. Only what is summed over the batch (``features_sum``), or pushed through to the parameters, has a
space in common.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mtl.model import MultiTaskModel

Places = dict[str, tuple[int, int]]  # of each task, the first of its samples and the one after its last


class Concatenated(nn.Module):
    """A backbone that runs once over the inputs of all tasks, one after the other along the first axis.

    A dict task -> inputs ``[B_task, ...]`` -> the features of all of them, and where each task's are. What the backbone
    takes from a batch, as batch normalisation does, it takes from the tasks' together.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, inputs: Mapping[str, Tensor]) -> tuple[Any, Places]:
        """One pass."""
        ends = list(accumulate(len(own) for own in inputs.values()))
        places = dict(zip(inputs, zip([0, *ends], ends, strict=False), strict=True))
        return self.backbone(torch.cat(list(inputs.values()))), places


class OwnSamples(nn.Module):
    """A head that reads the features of its own task's samples."""

    def __init__(self, task: str, head: nn.Module) -> None:
        super().__init__()
        self.task, self.head = task, head

    def forward(self, features: tuple[Any, Places]) -> Any:
        """The head's prediction for them."""
        return self.head(own_samples(self.task, features))


def own_samples(task: str, features: tuple[Any, Places]) -> Any:
    """The part of what ``Concatenated`` returns that is one task's."""
    values, places = features
    first, end = places[task]
    return pytree.tree_map_only(Tensor, lambda tensor: tensor[first:end], values)


def read_own_samples(model: MultiTaskModel) -> None:
    """Make every head of a model read its own task's samples."""
    for task, head in list(model.heads.items()):
        model.heads[task] = OwnSamples(task, head)
