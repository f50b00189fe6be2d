"""Tasks that have inputs of their own: one trunk pass over all of them, and each head on its own samples.

The rows of such tasks lie on different samples: at the features, flattened, any two are orthogonal, whatever the tasks
want of the trunk. Only what is summed over the batch (``features_sum``), or pushed through to the parameters, has a
space in common.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mtl.model import MultiTaskModel

log = logging.getLogger(__name__)

Places = dict[str, tuple[int, int]]  # of each task, the first of its samples and the one after its last


class Concatenated(nn.Module):
    """A backbone that runs once over the inputs of ``tasks``, one after the other along the first axis.

    A dict task -> inputs ``[B_task, ...]`` -> the features of all of them, and where each task's are. What the backbone
    takes from a batch, as batch normalisation does, it takes from the tasks' together.
    """

    def __init__(self, backbone: nn.Module, tasks: Sequence[str]) -> None:
        super().__init__()
        self.backbone, self.tasks = backbone, list(tasks)

    def forward(self, inputs: Mapping[str, Tensor]) -> tuple[Any, Places]:
        """One pass. Inputs of other tasks stay out of it, unless there are no others."""
        chosen = {task: own for task, own in inputs.items() if task in self.tasks} or inputs
        ends = list(accumulate(len(own) for own in chosen.values()))
        places = dict(zip(chosen, zip([0, *ends], ends, strict=False), strict=True))
        return self.backbone(torch.cat(list(chosen.values()))), places


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


def common_space(cfg: Any) -> dict[str, str]:
    """Where the tasks can be compared, as an argument for a strategy whose configuration leaves it open.

    ValueError for what tasks with inputs of their own cannot have.
    """
    if cfg.trainer.accumulate == "exact" and cfg.trainer.accumulate_grad_batches > 1:
        raise ValueError(
            "trainer.accumulate=exact: every task has inputs of its own, which do not come in pieces of one batch; "
            "use trainer.accumulate=micro."
        )
    space = cfg.strategy.get("space")
    if space == "features":
        raise ValueError(
            "strategy.space=features: every task has inputs of its own, so that at the features no two of their "
            "gradients have a sample in common; use strategy.space=parameters, or features_sum where the rule needs no "
            "rows."
        )
    if space == "parameters" and cfg.conflict.audit_every is not None:
        raise ValueError(
            f"conflict.audit_every={cfg.conflict.audit_every}: every task has inputs of its own, and with "
            "strategy.space=parameters there is nothing at the features to compare with; use null."
        )
    if space is not None:
        return {}
    log.info("every task has inputs of its own: conflict is measured on gradients that are summed over the batch")
    return {"space": "features_sum"}
