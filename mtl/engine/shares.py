"""How much of each task's labels is on this rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from mtl.distributed.reducer import Reducer
from mtl.tasks import Task, label_counts, learnable_tasks


@dataclass(frozen=True)
class LabelShares:
    """This rank's part of a step's batch: all of it in a single process.

    ``tasks``: those with a label anywhere in the batch. ``shares``: the share of each one's labels on this rank, from 0
    to 1; a loss times its share is this rank's part of the mean over the whole batch. ``samples``: of each rank;
    ``sample_share``: the share of them on this rank.
    """

    tasks: list[Task]
    shares: dict[str, float]
    samples: list[int]
    sample_share: float = 1.0


def label_shares(tasks: Sequence[Task], inputs: Any, targets: Mapping[str, Any], reducer: Reducer) -> LabelShares:
    """The tasks that are in the batch, and this rank's share of their labels: one sum over the ranks."""
    samples = next((len(leaf) for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.dim()), 1)
    if not reducer.is_distributed:
        present = learnable_tasks(tasks, targets)
        return LabelShares(present, {task.name: 1.0 for task in present}, [samples])
    here = label_counts(tasks, targets)
    sizes = [samples * (number == reducer.rank) for number in range(reducer.world_size)]
    everywhere = reducer.sum([*here, *sizes])
    shares = {task.name: own / all_ for task, own, all_ in zip(tasks, here, everywhere, strict=False) if all_}
    present = [task for task in tasks if task.name in shares]
    counts = [int(size) for size in everywhere[len(here) :]]
    return LabelShares(present, shares, counts, samples / sum(counts))
