from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mtl.errors import require
from mtl.preference import Preference, preferences
from mtl.weightings.epoch_means import EpochMeans
from mtl.weightings.task_weighting import TaskWeighting
from mtl.weightings.weighting import WITHOUT_WEIGHT


class STCH(TaskWeighting):
    """Smooth Tchebycheff scalarization (STCH): a smooth maximum of the losses relative to their values after warm-up.

    The scalarization and the weights, its derivatives, are::

        warm-up:     sum_k log L_k                                 w_k = 1 / L_k
        afterwards:  K mu log sum_k exp(l_k / mu),   l_k = log(r_k L_k / nadir_k)   w_k = K softmax(l / mu)_k / L_k

    ``nadir_k`` is the mean loss of the last of the ``warmup_epochs``, and 1 without any. An epoch is
    ``steps_per_epoch`` calls of ``observe``, so steps without labels must be observed too. A smaller ``mu`` is closer
    to the maximum; at 1 it is the logarithm of a weighted sum.

    ``preference`` r maps tasks to positive numbers, 1 where it names none, or has one number a task in their order.
    Their ratios count, and only after the warm-up. As under :class:`Tchebycheff` a task with twice the preference ends
    with half the loss, here relative to its nadir, as far as the maximum decides.

    Scale: ``sum_k w_k L_k = K`` in both phases, with K the number of tasks in the batch. A task without labels in the
    last warm-up epoch continues its warm-up, outside the sum and its K, until the end of its first epoch with labels. A
    loss at or below ``epsilon`` counts as ``epsilon`` in the sum and has weight 0.

    Source: Lin et al. 2024, "Smooth Tchebycheff Scalarization for Multi-Objective Optimization", with
    logarithms, nadir and warm-up of five epochs as in the official multi-task code, which has no preference. The paper
    multiplies the objectives by it, ``r_k (L_k - z_k)``. So does this to the loss inside the logarithm: a factor of the
    logarithm itself, which is negative below the nadir, would favour the other tasks there. LibMTL reports weights of
    1; here they are the derivatives.
    """

    needs_all_losses = True
    nadir: Tensor
    log_preference: Tensor

    def __init__(
        self,
        tasks: Sequence[str],
        steps_per_epoch: int,
        mu: float = 1.0,
        warmup_epochs: int = 5,
        epsilon: float = 1e-8,
        preference: Preference | None = None,
    ) -> None:
        super().__init__(tasks)
        require("mu", mu, "above 0", 0 < mu < math.inf)
        require("warmup_epochs", warmup_epochs, "0 or more", warmup_epochs >= 0)
        require("epsilon", epsilon, "above 0", 0 < epsilon < math.inf)
        self.mu, self.warmup_epochs, self.epsilon = mu, warmup_epochs, epsilon
        self.epoch_means = EpochMeans(len(tasks), steps_per_epoch)
        initial = torch.nan if warmup_epochs else 1.0  # NaN: still in warm-up
        self.register_buffer("nadir", torch.full((len(tasks),), initial))
        given = torch.tensor(preferences(preference or {}, tasks), dtype=torch.float32)
        self.register_buffer("log_preference", given.log(), persistent=False)

    @property
    def warmup(self) -> tuple[int, str]:
        """Some epochs of the logarithm."""
        return self.warmup_epochs * self.epoch_means.steps_per_epoch, "weighting=log, whatever the preference"

    def weights(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the derivatives of the scalarization with respect to the losses."""
        values = self.vector(losses)
        positive = values.clamp(min=self.epsilon)
        exponents = (positive.log() - self.nadir.log() + self.log_preference) / self.mu
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
