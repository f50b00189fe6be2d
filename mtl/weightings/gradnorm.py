from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mtl.errors import require
from mtl.weightings.adam import Adam
from mtl.weightings.task_weighting import TaskWeighting

# A weight of 0 could not be learned back: its task's gradient would vanish from the Gram matrix.
FLOOR = 1e-4
EPSILON = 1e-8


class GradNorm(TaskWeighting):
    """Gradient normalization: the gradients' norms are balanced, larger for tasks that train more slowly.

    With n_k the norm of task k's unscaled gradient, one Adam step a batch lowers

        sum_k | w_k n_k - G r_k^alpha |,   G = mean_i w_i n_i,   r_k = (L_k / L_k(0)) / mean_i (L_i / L_i(0))

    where G r_k^alpha is held constant and L_k(0) is the first loss that was seen of the task; then the weights are
    rescaled to their sum. ``alpha``: 0 makes the norms equal, more pulls tasks of slow progress up. ``lr``: Adam's;
    it is also about how finely a weight can settle, which matters where norms are more than 1/lr apart.

    The norm is taken at the shared features (or in the space that a balancing strategy compares its rows in), from the
    diagonal of the Gram matrix of the scaled gradients, which is w_k^2 n_k^2; the paper takes it at the weights of the
    last shared layer. A step uses the weights of the step before, so they are known when the heads run.

    Scale: the weights of all K tasks sum to K. Means and sums are over the tasks in the batch; an absent task keeps
    its weight, and those present share what remains of K. Losses are taken to be positive (r_k is 0 below 0); weights
    start at 1 and are kept above 1e-4 before the rescaling, where the paper states no bound.

    Source: Chen et al. 2018, "GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep Multitask
    Networks", equations 1 and 2, algorithm 1. LibMTL learns w = K softmax(s) with the model's optimizer, takes the
    mean loss of the first epoch as L(0), and leaves the heads unscaled; here all three are as in the paper.
    """

    affine = True
    needs_gram = True
    current: Tensor
    first: Tensor

    def __init__(self, tasks: Sequence[str], alpha: float = 1.5, lr: float = 0.025) -> None:
        super().__init__(tasks)
        require("alpha", alpha, "0 or more", 0 <= alpha < math.inf)
        self.alpha = alpha
        self.adam = Adam(len(tasks), lr)
        self.register_buffer("current", torch.ones(len(tasks)))
        self.register_buffer("first", torch.full((len(tasks),), torch.nan))

    def forward(self, task: str, loss: Tensor) -> Tensor:
        """Return ``loss`` times the task's present weight."""
        return loss * self.current[self._index[task]]

    def observe(self, losses: Mapping[str, Tensor], gram: Tensor | None) -> None:
        """Move the weights by the losses and the norms of this batch."""
        if not losses:
            return
        assert gram is not None, "GradNorm needs the Gram matrix of every step"
        values = self.vector(losses).to(self.current)
        diagonal = gram.diagonal().clamp(min=0).sqrt().float()
        # A plain copy would wait for all that the GPU has queued.
        diagonal = diagonal.to(self.current.device, non_blocking=self.current.is_cuda)
        norms = self.vector(dict(zip(losses, diagonal.unbind(), strict=True)))
        known = values.isfinite() & norms.isfinite()
        self.first.copy_(torch.where(known & self.first.isnan(), values, self.first))
        gradient = torch.sign(norms - self._targets(values, norms, known)) * norms / self.current
        self._move(gradient, known)

    def _targets(self, losses: Tensor, norms: Tensor, known: Tensor) -> Tensor:
        ratio = (losses / self.first.clamp(min=EPSILON)).clamp(min=0)
        rate = ratio / _mean(ratio, known)
        rate = torch.where(rate.isfinite(), rate, 1)  # where no present task has any loss left
        return _mean(norms, known) * rate**self.alpha

    def _move(self, gradient: Tensor, known: Tensor) -> None:
        total = torch.where(known, self.current, 0).sum()
        self.adam.step(self.current, gradient, known)
        moved = self.current.clamp(min=FLOOR)
        moved = moved * (total / torch.where(known, moved, 0).sum())
        self.current.copy_(torch.where(known, moved, self.current))


def _mean(values: Tensor, known: Tensor) -> Tensor:
    return torch.where(known, values, torch.nan).nanmean()
