from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mtl.errors import require
from mtl.weightings.adam import Adam
from mtl.weightings.task_weighting import TaskWeighting

EPSILON = 1e-8


class FAMO(TaskWeighting):
    """Fast adaptive multitask optimization (FAMO): all losses should decrease at the same relative rate.

    The weights are the derivative of ``c sum_k z_k log D_k``::

        w_k = c z_k / D_k,   z = softmax(xi),   D_k = L_k - min_k + 1e-8,   c = 1 / sum_i (z_i / D_i)

    After the model's update, the losses of the same batch give ``D'`` and thus the decrease of each logarithm. Adam
    updates the logits xi (0 at the start) along ::

        J' (log D - log D') + gamma xi,   J = dz / dxi

    Scale: ``sum_k w_k = 1``, so the direction is a convex combination of the task gradients. All sums and the softmax
    are over the tasks in the batch; the logit and the moments of an absent task do not change.

    ``min_losses``: lower bounds of the losses, 0 by default; a loss below its bound is clamped to it and then has
    nearly all the weight. ``lr``: Adam's learning rate for the logits. ``gamma``: the decay of the logits.

    Source: Liu et al. 2023, "FAMO: Fast Adaptive Multitask Optimization", algorithm 1. The paper tunes gamma; the
    default of the official class is 0.01. The official code also clips the shared gradient to norm 1, which is left to
    the trainer here (``trainer.grad_clip_norm``); LibMTL omits it.
    """

    needs_all_losses = True
    needs_losses_after_update = True
    min_losses: Tensor
    logits: Tensor
    before: Tensor

    def __init__(
        self,
        tasks: Sequence[str],
        lr: float = 0.025,
        gamma: float = 1e-3,
        min_losses: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(tasks)
        require("gamma", gamma, "0 or more", 0 <= gamma < math.inf)
        bounds = dict.fromkeys(tasks, 0.0)
        for task, bound in (min_losses or {}).items():
            if task not in bounds:
                raise ValueError(f"min_losses.{task} names no task; the tasks are {', '.join(tasks)}.")
            require(f"min_losses.{task}", bound, "a finite number", math.isfinite(bound))
            bounds[task] = bound
        self._bounds = bounds  # numbers that are read without waiting for the device
        self.register_buffer("min_losses", torch.tensor(list(bounds.values()), dtype=torch.float32), persistent=False)
        self.register_buffer("logits", torch.zeros(len(tasks)))
        self.register_buffer("before", torch.full((len(tasks),), torch.nan))
        self.adam = Adam(len(tasks), lr, weight_decay=gamma)

    def weights(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights, which sum to 1."""
        distances = self._distances(losses)
        z = self._softmax(distances.isfinite())
        shares = torch.where(distances.isfinite(), z / distances, 0)
        return self.by_task(shares / shares.sum(), losses)

    def out_of_domain(self, task: str, loss: float) -> str | None:
        """A loss at or below its bound."""
        bound = self._bounds[task]
        if loss > bound:
            return None
        return f"a loss at or below its bound, weighting.min_losses.{task}={bound:g}, takes nearly all the weight"

    def observe(self, losses: Mapping[str, Tensor], gram: Tensor | None) -> None:
        """Store the losses before the update."""
        self.before.copy_(self._distances(losses) if losses else torch.full_like(self.before, torch.nan))

    def observe_after_update(self, losses: Mapping[str, Tensor]) -> None:
        """Update the logits by the change of the losses."""
        if not losses:
            return
        decrease = self.before.log() - self._distances(losses).log()
        known = decrease.isfinite()
        decrease = torch.where(known, decrease, 0)
        z = self._softmax(known)
        self.adam.step(self.logits, z * (decrease - (z * decrease).sum()), known)

    def _distances(self, losses: Mapping[str, Tensor]) -> Tensor:
        return (self.vector(losses) - self.min_losses).clamp(min=0) + EPSILON

    def _softmax(self, known: Tensor) -> Tensor:
        return torch.where(known, self.logits, -torch.inf).softmax(0)
