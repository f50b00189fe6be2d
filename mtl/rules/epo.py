from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor

from mtl.errors import require
from mtl.preference import Preference
from mtl.rules.preference import PreferenceRule
from mtl.rules.rule import Array
from mtl.rules.solvers import SolverError, UnitRows, unit_rows

ACCURACY: Any = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
TOLERANCE = 1e-8  # of the constraints, relative to the rows


class EPO(PreferenceRule):
    """Exact Pareto optimal search: towards the losses with ``p_1 L_1 = … = p_K L_K``, and down where they hold.

    ``preference`` p, see :class:`PreferenceRule`: a task with twice the preference ends with half the loss, where the
    Pareto front has such a point. With ``l = p L / sum_i p_i L_i``, the non-uniformity ``mu = sum_i l_i log(K l_i)``
    and the adjustments ``a_i = p_i (log(K l_i) - mu)``, the weights w on the simplex are the solution of a linear
    program:

    - balance, where ``mu > epsilon``: maximise ``w'G a``. The task with the largest ``p_i L_i`` may not get worse, and
      no task with ``(G a)_j <= 0`` worse than that; where there are such tasks alone, none may get worse.
    - descent, otherwise: maximise ``1'G w``, where no task may get worse, and ``w'G a >= min(0, max_j (G a)_j)``.

    The weights sum to one. A zero gradient has weight zero, and K of them 1/K each. Losses must be 0 or more.

    Promises: the losses go to the ray on which preference times loss is the same for every task.

    Fails for: losses of different units, or below zero: the ray then means nothing.

    Source: Mahapatra & Rajan 2020, "Multi-Task Learning with User Preferences", with the threshold of the official
    code, which multiplies the weights by K and takes the preference itself where its solver fails. Solved by HiGHS on
    rows of unit length; SolverError where it fails.
    """

    per_task_state = True

    def __init__(
        self,
        num_tasks: int,
        preference: Preference | None = None,
        tasks: Sequence[str] | None = None,
        epsilon: float = 1e-4,
    ) -> None:
        super().__init__(preference or [1.0] * num_tasks, tasks)
        require("epsilon", epsilon, "0 or more", 0 <= epsilon < np.inf)
        self.epsilon = epsilon
        self._losses = np.ones(0)

    def forward(self, gram: Tensor, losses: Tensor, present: Sequence[int] | None = None) -> Tensor:  # type: ignore[override]
        """Return the weights ``[K]`` for the Gram matrix ``[K, K]`` and the losses ``[K]``."""
        self._losses = losses.detach().to("cpu", torch.float64).numpy()
        if len(self._losses) != len(gram):
            raise ValueError(f"The Gram matrix has {len(gram)} tasks, but there are {len(self._losses)} losses.")
        return super().forward(gram, present=present)

    def weigh_preferred(self, gram: Array, preference: Array) -> Array:
        """Return the weights on the simplex."""
        losses = self._losses
        if not (np.isfinite(losses).all() and (losses >= 0).all()):
            raise SolverError(f"EPO needs finite losses of 0 or more, not {losses.tolist()}.")
        rows = unit_rows(gram)
        if not len(rows.norms):
            return np.full(len(gram), 1 / len(gram))
        scaled, mu, adjustments = _adjustments(preference, losses)
        towards = rows.correlation @ (rows.norms * adjustments[rows.alive])  # <u_j, sum_i a_i g_i>
        size = rows.norms @ np.abs(adjustments[rows.alive])
        towards[np.abs(towards) <= 1e-14 * size] = 0
        if mu > self.epsilon:
            worst = scaled[rows.alive] == scaled[rows.alive].max()
            bounds = np.where(towards > 0, -np.inf, towards) if (towards > 0).any() else np.zeros_like(towards)
            return rows.scatter(_solve(rows, towards, np.where(worst, 0.0, bounds)))
        least = min(0.0, float((rows.norms * towards).max()))
        everyone = rows.correlation @ rows.norms  # <u_j, sum_i g_i>
        return rows.scatter(_solve(rows, everyone, np.zeros_like(towards), (towards, least)))


def _adjustments(preference: Array, losses: Array) -> tuple[Array, float, Array]:
    """``p L``, the non-uniformity and the adjustments; losses that are all zero are uniform."""
    scaled = preference * losses
    total = scaled.sum()
    shares = scaled / total if total > 0 else np.full(len(losses), 1 / len(losses))
    logs = np.log(np.maximum(len(losses) * shares, np.finfo(np.float64).tiny))
    mu = float(shares @ np.where(shares > 0, logs, 0))
    return scaled, mu, preference * (logs - mu)


def _solve(rows: UnitRows, aim: Array, bounds: Array, also: tuple[Array, float] | None = None) -> Array:
    """Maximise ``sum_i v_i aim_i`` over ``v_i = w_i |g_i|``, w on the simplex, with ``<u_j, d> >= bounds_j``.

    ``d = sum_i v_i u_i`` in units of the shortest row; ``also``: a further bound ``sum_i v_i first_i >= second``.
    """
    unit = rows.norms.min()
    limited = np.isfinite(bounds)
    left, right = -rows.correlation[limited], -bounds[limited] / unit
    if also is not None:
        left, right = np.vstack([left, -also[0]]), np.append(right, -also[1] / unit)
    scale = max(1e-300, float(np.abs(aim).max()))
    inverse = unit / rows.norms
    found: Any = linprog(
        -aim / scale, left, right, inverse[None], np.ones(1), bounds=(0, None), method="highs", options=ACCURACY
    )
    if found.status:
        raise SolverError(f"The linear program of EPO for {len(aim)} tasks has no solution: {found.message}")
    values = np.maximum(found.x, 0)
    violation = float((left @ values - right).max(initial=0.0))
    if violation > TOLERANCE * (values.sum() + np.abs(right).max(initial=0.0)):
        raise SolverError(f"The linear program of EPO missed a constraint by {violation:.1e}.")
    weights = values * inverse
    return weights / weights.sum()
