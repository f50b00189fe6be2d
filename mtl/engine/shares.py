from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mtl.distributed.collectives import all_reduce, get_rank, get_world_size, is_distributed
from mtl.distributed.data_parallel import GradientReducer
from mtl.distributed.sharding import is_sharded
from mtl.gradients.rows import Rows
from mtl.model import MultiTaskModel
from mtl.tasks import Task, label_counts, loss_modules, present_tasks


@dataclass(frozen=True)
class LabelShares:
    """This process's part of a step's batch: all of it, unless there are others.

    ``tasks``: those with a label anywhere in the batch. ``shares``: how much of each one's labels is here, from 0 to 1;
    a loss times its share is this process's part of the whole batch's mean. ``samples``: of each process.
    """

    tasks: list[Task]
    shares: dict[str, float]
    samples: list[int]

    def whole(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every task's loss from its parts: one sum over the processes."""
        if not is_distributed() or not losses:
            return dict(losses)
        return dict(zip(losses, all_reduce(torch.stack(list(losses.values()))).unbind(), strict=True))

    def places(self, rows: Rows) -> list[list[tuple[int, int, int]]]:
        """Where the columns of ``rows`` lie in those of the whole batch; see Rows.places."""
        return rows.places(sum(self.samples[: get_rank()]), sum(self.samples))

    def send(self, model: MultiTaskModel, losses: Mapping[str, Tensor] | None = None) -> HeadReduction:
        """Start to sum the heads' gradients over the processes, and the parts of the losses with them."""
        return HeadReduction(self, model, losses or {})


class HeadReduction:
    """The heads' gradients on their way: one buffer for all of them, whatever their number."""

    def __init__(self, shard: LabelShares, model: MultiTaskModel, losses: Mapping[str, Tensor]) -> None:
        self._losses, self._sum = losses, None
        if is_distributed():
            model.unsent |= {task.name: task for task in shard.tasks}
            parameters: list[nn.Parameter] = []
            if model.synchronises:  # the tasks of all batches of this step, which the last one may lack
                tasks, model.unsent = list(model.unsent.values()), {}
                own = [*(model.heads[task.name] for task in tasks), *loss_modules(tasks).values()]
                learned = dict.fromkeys(p for module in own for p in module.parameters() if p.requires_grad)
                parameters = [p for p in learned if not is_sharded(p)]
            self._sum = GradientReducer(parameters, list(losses.values()))

    def wait(self) -> dict[str, Tensor]:
        """The sums are in ``.grad``; returns the whole losses."""
        if self._sum is None:
            return dict(self._losses)
        return dict(zip(self._losses, self._sum.wait(), strict=True))


def label_shares(tasks: Sequence[Task], inputs: Any, targets: Mapping[str, Any]) -> LabelShares:
    """Which tasks are in the batch, and how much of them is here: with several processes, one sum over them."""
    samples = next((len(leaf) for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.dim()), 1)
    if not is_distributed():
        present = present_tasks(tasks, targets)
        return LabelShares(present, {task.name: 1.0 for task in present}, [samples])
    here = label_counts(tasks, targets)
    sizes = [samples * (number == get_rank()) for number in range(get_world_size())]
    everywhere = all_reduce(torch.tensor([*here, *sizes], dtype=torch.float64)).tolist()
    shares = {task.name: own / all_ for task, own, all_ in zip(tasks, here, everywhere, strict=False) if all_}
    present = [task for task in tasks if task.name in shares]
    return LabelShares(present, shares, [int(size) for size in everywhere[len(here) :]])
