from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mtl.errors import require
from mtl.weightings.epoch_means import EpochMeans
from mtl.weightings.task_weighting import TaskWeighting
from mtl.weightings.weighting import WITHOUT_WEIGHT


class STCH(TaskWeighting):
    """Smooth Tchebycheff scalarization (STCH): a smooth maximum of the losses relative to their values after warm-up.

    The scalarization and the weights, its derivatives, are::

        warm-up:     sum_k log L_k                                 w_k = 1 / L_k
        afterwards:  K mu log sum_k exp(log(L_k / nadir_k) / mu)   w_k = K softmax(log(L / nadir) / mu)_k / L_k

    ``nadir_k`` is the mean loss of the last of the ``warmup_epochs``. An epoch is ``steps_per_epoch`` calls of
    ``observe``, so steps without labels must be observed too. A smaller ``mu`` is closer to the maximum.

    Scale: ``sum_k w_k L_k = K`` in both phases, with K the number of tasks in the batch. A task without labels in the
    last warm-up epoch continues its warm-up, outside the sum and its K, until the end of its first epoch with labels. A
    loss at or below ``epsilon`` counts as ``epsilon`` in the sum and has weight 0.

    Source: Lin et al. 2024, "Smooth Tchebycheff Scalarization for Multi-Objective Optimization", with
    logarithms, nadir and warm-up of five epochs as in the official multi-task code. LibMTL reports weights of 1; here
    they are the derivatives.
    """

    needs_all_losses = True
    nadir: Tensor

    def __init__(
        self,
        tasks: Sequence[str],
        steps_per_epoch: int,
        mu: float = 1.0,
        warmup_epochs: int = 5,
        epsilon: float = 1e-8,
    ) -> None:
        super().__init__(tasks)
        require("mu", mu, "above 0", 0 < mu < math.inf)
        require("warmup_epochs", warmup_epochs, "1 or more", warmup_epochs >= 1)
        require("epsilon", epsilon, "above 0", 0 < epsilon < math.inf)
        self.mu, self.warmup_epochs, self.epsilon = mu, warmup_epochs, epsilon
        self.epoch_means = EpochMeans(len(tasks), steps_per_epoch)
        self.register_buffer("nadir", torch.full((len(tasks),), torch.nan))  # NaN: still in warm-up

    def weights(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the derivatives of the scalarization with respect to the losses."""
        values = self.vector(losses)
        positive = values.clamp(min=self.epsilon)
        exponents = (positive.log() - self.nadir.log()) / self.mu
        ready = exponents.isfinite()
        shares = ready.sum() * torch.where(ready, exponents, -torch.inf).softmax(0)
        weights = torch.where(ready, shares, 1) / positive
        return self.by_task(torch.where(values <= self.epsilon, 0, weights), losses)

    def out_of_domain(self, task: str, loss: float) -> str | None:
        """A loss at or below ``epsilon``."""
        return None if loss > self.epsilon else WITHOUT_WEIGHT

    def observe(self, losses: Mapping[str, Tensor], gram: Tensor | None) -> None:
        """Add the losses to the epoch's means; the means at the end of warm-up are the nadir."""
        means = self.epoch_means.add(self.vector(losses) if losses else None)
        if means is not None and self.epoch_means.epoch >= self.warmup_epochs:
            means = means.clamp(min=self.epsilon)
            self.nadir.copy_(torch.where(self.nadir.isfinite(), self.nadir, means))
