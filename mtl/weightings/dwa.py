from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mtl.errors import require
from mtl.weightings.epoch_means import EpochMeans
from mtl.weightings.task_weighting import TaskWeighting


class DWA(TaskWeighting):
    """Dynamic weight average: the slower a task's loss falls from epoch to epoch, the more it counts.

        w_k = K exp(r_k / T) / sum_i exp(r_i / T),   r_k = L_k(t-1) / L_k(t-2)

    with L_k(t) the mean loss of epoch t; all weights are 1 in the first two epochs. ``steps_per_epoch`` calls of
    ``observe`` are an epoch, so a step without any label must be observed as well.

    Scale: the weights of all K tasks sum to K. A task that an epoch did not have keeps its last two means; one that
    has had fewer than two epochs, or whose older mean is 0, has r = 1. K counts all tasks, present or not.

    Source: Liu et al. 2019, "End-to-End Multi-Task Learning with Attention", equation 7; T = 2 as there.
    """

    affine = True
    older: Tensor
    newer: Tensor
    current: Tensor

    def __init__(self, tasks: Sequence[str], steps_per_epoch: int, temperature: float = 2.0) -> None:
        super().__init__(tasks)
        require("temperature", temperature, "above 0", 0 < temperature < math.inf)
        self.temperature = temperature
        self.epoch_means = EpochMeans(len(tasks), steps_per_epoch)
        self.register_buffer("older", torch.full((len(tasks),), torch.nan))
        self.register_buffer("newer", torch.full((len(tasks),), torch.nan))
        self.register_buffer("current", torch.ones(len(tasks)))

    def forward(self, task: str, loss: Tensor) -> Tensor:
        """Return ``loss`` times the weight that the task has in this epoch."""
        return loss * self.current[self._index[task]]

    def observe(self, losses: Mapping[str, Tensor], gram: Tensor | None) -> None:
        """Add the losses to the epoch's means; at its end, set the next epoch's weights."""
        means = self.epoch_means.add(self.vector(losses) if losses else None)
        if means is None:
            return
        seen = means.isfinite()
        self.older.copy_(torch.where(seen, self.newer, self.older))
        self.newer.copy_(torch.where(seen, means, self.newer))
        ratio = self.newer / self.older
        ratio = torch.where(ratio.isfinite(), ratio, 1.0)
        self.current.copy_(len(ratio) * (ratio / self.temperature).softmax(0))
