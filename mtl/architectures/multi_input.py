"""Tasks with inputs of their own: one pass of the trunk over all inputs; each head reads its own samples.

The task gradients at the features are nonzero on different samples. Flattened, any two of them are orthogonal, whatever
the tasks demand of the trunk. Only their sums over the batch (``space=features_sum``) or the gradients with respect to
the parameters (``space=parameters``) are in a common space.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils import _pytree as pytree

from mtl.model import MultiTaskModel

log = logging.getLogger(__name__)

Bounds = dict[str, tuple[int, int]]  # task -> its first sample, and one past its last


class Concatenated(nn.Module):
    """A backbone that runs once over the inputs of ``tasks``, concatenated along the first axis.

    The input is a dict task -> ``[B_task, ...]``, or a nesting of such tensors; texts, dicts with a ``mask``
    ``[B_task, T]``, are padded to one length. The output is the features of all samples, and the bounds of each task
    in them. Batch statistics, as in batch normalisation, are those of all tasks together.
    """

    def __init__(self, backbone: nn.Module, tasks: Sequence[str]) -> None:
        super().__init__()
        self.backbone, self.tasks = backbone, list(tasks)

    def forward(self, inputs: Mapping[str, Any]) -> tuple[Any, Bounds]:
        """The features of all samples, and each task's bounds; inputs of other tasks are used only without own ones."""
        chosen = {task: own for task, own in inputs.items() if task in self.tasks} or inputs
        ends = list(accumulate(len(pytree.tree_leaves(own)[0]) for own in chosen.values()))
        bounds = dict(zip(chosen, zip([0, *ends], ends, strict=False), strict=True))
        return self.backbone(concatenate(list(chosen.values()))), bounds


def concatenate(inputs: Sequence[Any]) -> Any:
    """Several tasks' inputs as one batch; texts are padded to the longest with zeros, which their mask leaves out."""
    first = inputs[0]
    if not isinstance(first, Mapping):
        return torch.cat(list(inputs))
    parts = {key: [own[key] for own in inputs] for key in first}
    if "mask" in first:
        length = max(mask.shape[1] for mask in parts["mask"])
        parts = {key: [pad(own, (0, length - own.shape[1])) for own in values] for key, values in parts.items()}
    return {key: concatenate(values) for key, values in parts.items()}


class OwnSamples(nn.Module):
    """A head that reads the features of its task's samples alone."""

    def __init__(self, task: str, head: nn.Module) -> None:
        super().__init__()
        self.task, self.head = task, head

    def forward(self, features: tuple[Any, Bounds]) -> Any:
        """The head's prediction for these samples."""
        return self.head(own_samples(self.task, features))


def own_samples(task: str, features: tuple[Any, Bounds]) -> Any:
    """The features of one task's samples, from the output of :class:`Concatenated`."""
    values, bounds = features
    first, end = bounds[task]
    return pytree.tree_map_only(Tensor, lambda tensor: tensor[first:end], values)


def read_own_samples(model: MultiTaskModel) -> None:
    """Wrap every head of a model, so that it reads its own task's samples."""
    for task, head in list(model.heads.items()):
        model.heads[task] = OwnSamples(task, head)


def common_space(cfg: Any) -> dict[str, str]:
    """The strategy's ``space`` for tasks with inputs of their own, if the configuration leaves it open; else empty.

    ValueError for settings that such tasks cannot have.
    """
    if cfg.trainer.accumulate == "exact" and cfg.trainer.accumulate_grad_batches > 1:
        raise ValueError(
            "trainer.accumulate=exact: every task has inputs of its own, so a batch cannot be cut into pieces; "
            "use trainer.accumulate=micro."
        )
    space = cfg.strategy.get("space")
    if space == "features":
        raise ValueError(
            "strategy.space=features: every task has inputs of its own, so their gradients at the features have no "
            "sample in common; use strategy.space=parameters, or features_sum if the rule does not need rows."
        )
    if space == "parameters" and cfg.conflict.audit_every is not None:
        raise ValueError(
            f"conflict.audit_every={cfg.conflict.audit_every}: every task has inputs of its own, and with "
            "strategy.space=parameters there are no gradients at the features to compare with; use null."
        )
    if space is not None:
        return {}
    log.info("every task has inputs of its own: conflict is measured on gradients that are summed over the batch")
    return {"space": "features_sum"}
