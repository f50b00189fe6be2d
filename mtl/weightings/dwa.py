from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mtl.errors import require
from mtl.weightings.epoch_means import EpochMeans
from mtl.weightings.task_weighting import TaskWeighting


class DWA(TaskWeighting):
    """Dynamic weight average (DWA): a task has more weight if its loss decreases more slowly from epoch to epoch.

    With ``L_k(t)`` the mean loss of epoch t and T the ``temperature``::

        w_k = K exp(r_k / T) / sum_i exp(r_i / T),   r_k = L_k(t-1) / L_k(t-2)

    All weights are 1 in the first two epochs. An epoch is ``steps_per_epoch`` calls of ``observe``, so steps without
    labels must be observed too.

    Scale: the weights of all K tasks sum to K, whether present or absent. A task without labels in an epoch keeps its
    last two means. A task with fewer than two means, or with an older mean of 0, has r = 1.

    Source: Liu et al. 2019, "End-to-End Multi-Task Learning with Attention", equation 7, with T = 2.
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

    @property
    def warmup(self) -> tuple[int, str]:
        """Two epochs, whose ratio of losses is the first one."""
        return 2 * self.epoch_means.steps_per_epoch, "weighting=equal"

    def forward(self, task: str, loss: Tensor) -> Tensor:
        """Return ``loss`` times the task's weight in this epoch."""
        return loss * self.current[self._index[task]]

    def out_of_domain(self, task: str, loss: float) -> str | None:
        """A loss below 0."""
        return None if loss >= 0 else "the ratio of two epochs' losses says nothing of progress where they are below 0"

    def observe(self, losses: Mapping[str, Tensor], gram: Tensor | None) -> None:
        """Add the losses to the epoch's means; at the end of the epoch, set the weights of the next one."""
        means = self.epoch_means.add(self.vector(losses) if losses else None)
        if means is None:
            return
        seen = means.isfinite()
        self.older.copy_(torch.where(seen, self.newer, self.older))
        self.newer.copy_(torch.where(seen, means, self.newer))
        ratio = self.newer / self.older
        ratio = torch.where(ratio.isfinite(), ratio, 1.0)
        self.current.copy_(len(ratio) * (ratio / self.temperature).softmax(0))
