import numpy as np
import torch
from torch import Tensor

from mtl.errors import require
from mtl.rules.rule import Array, Indices, TaskRule
from mtl.rules.solvers import UnitRows, least_distance, unit_rows


class PCD(TaskRule):
    """Priority-constrained descent: close to the gradient of the primary task, with some improvement of every other.

    ``min_d |d - h_1|^2 / 2`` subject to ``<h_j, d> >= tau |h_j|^2`` for the secondary tasks j. Here
    ``h_i = g_i / sqrt(v_i + eps)``, and ``v_i`` is the bias-corrected running average of ``|g_i|^2`` with decay
    ``beta``. Then d is scaled to the norm of ``g_1``.

    ``primary`` is the index of the primary task. If the constraints are infeasible, the direction is ``g_1``. If d or
    ``g_1`` is zero, the weights are zero. A zero secondary gradient adds no constraint and has weight zero. Averages of
    absent tasks do not change. In a batch without the primary task, all weights are one.

    Promises: the primary task is followed, and every other improves by ``tau`` of its own, where both can be.

    Fails for: constraints that exclude each other: the others are then ignored.

    Source: "Not all objectives are born equal: priority-constrained descent for hierarchical
    multi-objective optimization" (TMLR 2026, arXiv 2606.29521). The reference enumerates the sets of tight
    constraints; here the same minimum is the solution of a least distance problem.
    """

    def __init__(
        self, num_tasks: int, primary: int = 0, tau: float = 0.02, beta: float = 0.999, eps: float = 1e-8
    ) -> None:
        super().__init__(num_tasks)
        require("primary", primary, f"a task index from 0 to {num_tasks - 1}", 0 <= primary < num_tasks)
        require("tau", tau, "from 0 to 1", 0 <= tau <= 1)
        require("beta", beta, "0 or more and below 1", 0 <= beta < 1)
        require("eps", eps, "0 or more", 0 <= eps < np.inf)
        self.primary, self.tau, self.beta, self.eps = primary, tau, beta, eps
        self.squares: Tensor
        self.counts: Tensor
        self.register_buffer("squares", torch.zeros(num_tasks, dtype=torch.float64, device="cpu"))
        self.register_buffer("counts", torch.zeros(num_tasks, dtype=torch.int64, device="cpu"))

    def weigh_tasks(self, gram: Array, tasks: Indices) -> Array:
        """Return the weights, and update the averages."""
        averages = self._update(gram.diagonal(), tasks)
        if self.primary not in tasks:
            return np.ones(len(tasks))
        first = int(np.flatnonzero(tasks == self.primary)[0])
        rows = unit_rows(gram)
        weights = np.zeros(len(tasks))
        if not rows.alive[first]:
            return weights
        own = int(rows.alive[:first].sum())
        lengths = rows.norms / np.sqrt(averages[rows.alive] + self.eps)
        added = _constrained(rows, own, lengths, self.tau)
        if added is None:
            weights[first] = 1
            return weights
        added[own] += lengths[own]  # d in terms of unit rows
        length = np.linalg.norm(rows.factor @ added)
        if length <= 1e-10 * lengths[own]:
            return weights
        return rows.scatter(added * (rows.norms[own] / rows.norms) / length)

    def _update(self, squares: Array, tasks: Indices) -> Array:
        """Update the averages of ``tasks``, and return them with bias correction."""
        stored, counts = self.squares.numpy(), self.counts.numpy()
        stored[tasks] = self.beta * stored[tasks] + (1 - self.beta) * squares.clip(0)
        counts[tasks] += 1
        return stored[tasks] / (1 - self.beta ** counts[tasks])


def _constrained(rows: UnitRows, own: int, lengths: Array, tau: float) -> Array | None:
    """The multipliers of the unit rows in ``d - h_1``; None if the constraints are infeasible."""
    others = np.flatnonzero(np.arange(len(lengths)) != own)
    added = np.zeros(len(lengths))
    if len(others):
        least = tau * lengths[others] - lengths[own] * rows.correlation[others, own]
        # The bounds are scaled to at most one.
        unit = np.abs(least).max() or 1.0
        multipliers = least_distance(rows.factor[:, others], least / unit)
        if multipliers is None:
            return None
        added[others] = multipliers * unit
    return added
