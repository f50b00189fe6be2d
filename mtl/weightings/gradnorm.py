from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mtl.errors import require
from mtl.gradients.transfer import send
from mtl.weightings.adam import Adam
from mtl.weightings.task_weighting import TaskWeighting

# A weight of 0 could never grow again: the task's gradient would vanish from the Gram matrix.
FLOOR = 1e-4
EPSILON = 1e-8


class GradNorm(TaskWeighting):
    """Gradient normalization (GradNorm): balances the norms of the task gradients, larger for tasks that train slowly.

    With ``n_k`` the norm of the unscaled gradient of task k, one Adam step per batch decreases ::

        sum_k |w_k n_k - G r_k^alpha|,   G = mean_i w_i n_i,   r_k = (L_k / L_k(0)) / mean_i (L_i / L_i(0))

    with ``G r_k^alpha`` held constant and ``L_k(0)`` the first loss of the task. Then the weights are rescaled to their
    sum. ``alpha``: 0 equalises the norms, larger values favour slow tasks. ``lr``: Adam's learning rate, also about the
    precision of a weight, which matters if the norms are more than a factor of 1/lr apart.

    The norms are those at the shared features (or in the space of a balancing strategy), from the diagonal of the Gram
    matrix of the scaled gradients, ``w_k^2 n_k^2``; the paper takes the weights of the last shared layer. A step uses
    the weights of the previous one, which are known when the heads run.

    Scale: the weights of all K tasks sum to K. Means and sums are over the tasks in the batch; an absent task keeps its
    weight, and the present ones share the rest of K. Losses should be positive (``r_k`` is 0 for negative ones).
    Weights start at 1 and are at least 1e-4 before the rescaling; the paper states no bound.

    Source: Chen et al. 2018, "GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep Multitask
    Networks", equations 1 and 2, algorithm 1. LibMTL learns ``w = K softmax(s)`` with the model's optimizer, takes the
    mean loss of the first epoch as ``L(0)``, and does not scale the heads; here all three are as in the paper.
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
        """Return ``loss`` times the task's current weight."""
        return loss * self.current[self._index[task]]

    def out_of_domain(self, task: str, loss: float) -> str | None:
        """A loss at or below 0."""
        return None if loss > 0 else "a loss at or below 0 has no training rate, the ratio to its first value"

    def observe(self, losses: Mapping[str, Tensor], gram: Tensor | None) -> None:
        """Update the weights from the losses and gradient norms of this batch."""
        if not losses:
            return
        assert gram is not None, "GradNorm needs the Gram matrix of every step"
        values = self.vector(losses).to(self.current)
        diagonal = send(gram.diagonal().clamp(min=0).sqrt().float(), self.current.device)
        norms = self.vector(dict(zip(losses, diagonal.unbind(), strict=True)))
        known = values.isfinite() & norms.isfinite()
        self.first.copy_(torch.where(known & self.first.isnan(), values, self.first))
        gradient = torch.sign(norms - self._targets(values, norms, known)) * norms / self.current
        self._update(gradient, known)

    def _targets(self, losses: Tensor, norms: Tensor, known: Tensor) -> Tensor:
        ratio = (losses / self.first.clamp(min=EPSILON)).clamp(min=0)
        rate = ratio / _mean(ratio, known)
        rate = torch.where(rate.isfinite(), rate, 1)  # all present losses are zero
        return _mean(norms, known) * rate**self.alpha

    def _update(self, gradient: Tensor, known: Tensor) -> None:
        total = torch.where(known, self.current, 0).sum()
        self.adam.step(self.current, gradient, known)
        moved = self.current.clamp(min=FLOOR)
        moved = moved * (total / torch.where(known, moved, 0).sum())
        self.current.copy_(torch.where(known, moved, self.current))


def _mean(values: Tensor, known: Tensor) -> Tensor:
    return torch.where(known, values, torch.nan).nanmean()
