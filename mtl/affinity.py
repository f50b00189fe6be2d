"""Task affinity: what a gradient step on task i alone does to the loss of task j (Fifty et al. 2021, TAG, eq. 1).

``Z_ij = 1 - L_j(after a step on i alone) / L_j(before)``: the share of j's loss that the step takes away, negative
where it adds to it. It is not symmetric. To first order in the learning rate it follows from the Gram matrix of the
tasks' gradients. Pure functions of tensors, as :mod:`mtl.conflict`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtl.descriptions import AFFINITIES


def first_order_affinity(gram: Tensor, losses: Tensor, lr: float, weights: Tensor | None = None) -> Tensor:
    """``Z_ij ≈ lr <g_i, g_j> / L_j``, ``[K, K]``, float64: row i is the task of the step, column j the one it acts on.

    ``gram`` [K, K] is that of the gradients of the tasks' ``weights`` [K] times their losses, which are divided out;
    ``losses`` [K] are the losses themselves. NaN where a loss is not above 0, of which a share means nothing, or a
    weight is 0.
    """
    gram = gram.detach().double().cpu()
    if weights is not None:
        inverse = 1 / weights.detach().double().cpu()
        gram = gram * inverse[:, None] * inverse[None, :]
    return relative(lr * gram, losses)


def relative(decrease: Tensor, losses: Tensor) -> Tensor:
    """The ``decrease`` [K, K] of each loss as a share of it, ``losses`` [K]; NaN where one is not above 0."""
    losses = losses.detach().double().cpu()
    return (decrease / losses.where(losses > 0, torch.nan)).where(decrease.isfinite(), torch.nan)


def named_affinity(affinity: Tensor, tasks: Sequence[str], kind: str = "estimate") -> dict[str, float]:
    """The affinities ``[K, K]`` by their logged names, as ``affinity/<i>→<j>``; those that are NaN are left out.

    ``kind``: one of ``mtl.descriptions.AFFINITIES``.
    """
    prefix, rows = AFFINITIES[kind], zip(tasks, affinity.tolist(), strict=True)
    return {f"{prefix}{a}→{b}": z for a, row in rows for b, z in zip(tasks, row, strict=True) if z == z}
