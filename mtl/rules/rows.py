"""Base class and state of the rules that need the task gradients (rows), not only their Gram matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from mtl.gradients.transfer import send
from mtl.rules.rule import Array, Rule, as_matrix

CHUNK = 65536


class RowRule(Rule):
    """A rule on rows: ``combine(rows, gram, losses, present) -> (direction, weights)``, see :meth:`combine`."""

    needs_rows = True
    elementwise: ClassVar[bool] = False  # independent elements: each rank can combine its own part of the rows

    def combine(
        self,
        rows: list[Tensor],
        gram: Tensor,
        losses: Tensor | None = None,
        present: Sequence[int] | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """Return the direction, one ``[n_i]`` tensor per leaf in the rows' dtype, and weights ``[K]`` to log.

        ``rows`` is one ``[K, n_i]`` tensor per leaf, ``gram`` their Gram matrix. If that is not finite, the direction
        is the sum of the rows, which is not finite either; the weights are NaN and the state does not change.
        """
        matrix = as_matrix(gram)
        if any(len(block) != len(matrix) for block in rows):
            raise ValueError(f"The Gram matrix has {len(matrix)} tasks, but there are {len(rows[0])} rows.")
        if not np.isfinite(matrix).all():
            return [block.sum(0) for block in rows], torch.full((len(matrix),), torch.nan, dtype=torch.float64)
        direction, weights = self.aggregate([block.detach() for block in rows], matrix, present)
        return [d.to(block.dtype) for d, block in zip(direction, rows, strict=True)], weights

    def aggregate(self, rows: list[Tensor], gram: Array, present: Sequence[int] | None) -> tuple[list[Tensor], Tensor]:
        """Return direction and weights for rows with a finite Gram matrix; every subclass must define this."""
        raise NotImplementedError(f"{type(self).__name__} must define aggregate.")


class StoredRows(nn.Module):
    """One stored row per task, kept from step to step, in float32 or better, on the device of the given rows.

    Memory is allocated at the first use, when the lengths are known, or when a state is loaded. ``counts`` ``[K]`` is
    the number of updates of each task.
    """

    def __init__(self, num_tasks: int) -> None:
        super().__init__()
        self.counts = np.zeros(num_tasks, dtype=np.int64)
        self.rows: list[Tensor] = []

    def gather(self, like: list[Tensor], tasks: np.ndarray) -> list[Tensor]:
        """The stored rows of ``tasks``, zero at first; ``like`` are new rows of the same lengths."""
        if not self.rows:
            kinds = [torch.promote_types(block.dtype, torch.float32) for block in like]
            sizes = [(len(self.counts), block.shape[1]) for block in like]
            self.rows = [b.new_zeros(s, dtype=k) for b, s, k in zip(like, sizes, kinds, strict=True)]
        lengths, new = [b.shape[1] for b in self.rows], [b.shape[1] for b in like]
        if lengths != new:
            raise ValueError(
                f"The stored rows have {lengths} elements and the new ones {new}: a rule that stores rows needs "
                "batches of one size, or a space whose rows do not depend on the batch."
            )
        self.rows = [stored.to(block.device) for stored, block in zip(self.rows, like, strict=True)]
        if self._has_all(tasks):
            return list(self.rows)
        return [stored[_sent(tasks, stored)] for stored in self.rows]

    def store(self, rows: list[Tensor], tasks: np.ndarray) -> None:
        """Store the rows of ``tasks``, and count the update."""
        for stored, block in zip(self.rows, rows, strict=True):
            if self._has_all(tasks):
                stored.copy_(block)
            else:
                stored[_sent(tasks, stored)] = block
        self.counts[tasks] += 1

    def _has_all(self, tasks: np.ndarray) -> bool:
        return np.array_equal(tasks, np.arange(len(self.counts)))

    def update_average(self, new: list[Tensor], tasks: np.ndarray, rates: np.ndarray) -> list[Tensor]:
        """Update and return the averages ``y <- y + rate (g - y)``; a task's first average is its first row."""
        rates = np.where(self.counts[tasks] == 0, 1.0, rates)
        averaged = []
        for stored, block in zip(self.gather(new, tasks), new, strict=True):
            rate = send(torch.from_numpy(rates), stored.device, stored.dtype)[:, None]
            averaged.append(torch.lerp(stored, block.to(stored.dtype), rate))
        self.store(averaged, tasks)
        return averaged

    def get_extra_state(self) -> dict[str, Any]:
        """Return rows and counts."""
        return {"counts": self.counts.tolist(), "rows": self.rows}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Continue from rows and counts; ValueError if they are of another number of tasks."""
        if len(state["counts"]) != len(self.counts):
            raise ValueError(
                f"The rows were stored for {len(state['counts'])} tasks, but num_tasks={len(self.counts)}."
            )
        self.counts = np.array(state["counts"], dtype=np.int64)
        self.rows = [block.clone() for block in state["rows"]]


def effective_weights(rows: list[Tensor], factors: list[Tensor]) -> Tensor:
    """The weights that elementwise ``factors`` amount to: ``<factor * g, g> / <g, g>``, zero for a zero row."""
    used, whole = torch.zeros(2, len(rows[0]), dtype=torch.float64, device=rows[0].device)
    for block, factor in zip(rows, factors, strict=True):
        whole += _squares(block)
        used += _squares(block * factor.sqrt())
    return (used / whole.where(whole > 0, 1)).cpu()


def _squares(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).square()


def weighted_sum(rows: list[Tensor], weights: Tensor | Array) -> list[Tensor]:
    """The sum ``sum_k w_k g_k`` of each leaf, in float32 or better."""
    kinds = [torch.promote_types(block.dtype, torch.float32) for block in rows]
    own = torch.as_tensor(weights)
    return [send(own, b.device, kind) @ b.to(kind) for b, kind in zip(rows, kinds, strict=True)]


def _sent(tasks: np.ndarray, like: Tensor) -> Tensor:
    return send(torch.from_numpy(tasks), like.device)


def gram_of(rows: list[Tensor]) -> Array:
    """The Gram matrix of the rows, in float64."""
    total = torch.zeros(len(rows[0]), len(rows[0]), dtype=torch.float64, device=rows[0].device)
    for block in rows:
        for chunk in block.split(CHUNK, 1):
            total += chunk.double() @ chunk.double().T
    return total.cpu().numpy()
