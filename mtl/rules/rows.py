"""What the rules share that need the rows themselves and not only their Gram matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from mtl.rules.rule import Array, Rule, as_matrix

CHUNK = 65536


class RowRule(Rule):
    """A rule on rows: ``combine(rows, gram, losses, present) -> (direction, weights)``; see ``combine``."""

    needs_rows = True
    elementwise: ClassVar[bool] = False  # each element by itself, so that a process can work on its part of them

    def combine(
        self,
        rows: list[Tensor],
        gram: Tensor,
        losses: Tensor | None = None,
        present: Sequence[int] | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """Return the direction, one ``[n_i]`` tensor a leaf in the rows' dtype, and weights ``[K]`` to log.

        ``rows`` is one ``[K, n_i]`` tensor a leaf, ``gram`` their Gram matrix. Where that is not finite, the
        direction is the plain sum, which is not finite either, the weights are NaN and the state stays.
        """
        matrix = as_matrix(gram)
        if any(len(block) != len(matrix) for block in rows):
            raise ValueError(f"The Gram matrix is about {len(matrix)} tasks, but there are {len(rows[0])} rows.")
        if not np.isfinite(matrix).all():
            return [block.sum(0) for block in rows], torch.full((len(matrix),), torch.nan, dtype=torch.float64)
        direction, weights = self.mix([block.detach() for block in rows], matrix, present)
        return [d.to(block.dtype) for d, block in zip(direction, rows, strict=True)], weights

    def mix(self, rows: list[Tensor], gram: Array, present: Sequence[int] | None) -> tuple[list[Tensor], Tensor]:
        """Return direction and weights for rows whose Gram matrix is finite: what a subclass must define."""
        raise NotImplementedError(f"{type(self).__name__} must say how it mixes rows.")


class KeptRows(nn.Module):
    """Rows of every task that are kept from step to step, in float32 or better, where the rows are.

    Their memory is taken at first use, when their lengths are known, or when a state is loaded. ``counts``
    [K] says how often each task was seen.
    """

    def __init__(self, num_tasks: int) -> None:
        super().__init__()
        self.counts = np.zeros(num_tasks, dtype=np.int64)
        self.rows: list[Tensor] = []

    def take(self, like: list[Tensor], tasks: np.ndarray) -> list[Tensor]:
        """The kept rows of ``tasks``, zero where there are none yet, beside new rows ``like`` them."""
        if not self.rows:
            kinds = [torch.promote_types(block.dtype, torch.float32) for block in like]
            sizes = [(len(self.counts), block.shape[1]) for block in like]
            self.rows = [b.new_zeros(s, dtype=k) for b, s, k in zip(like, sizes, kinds, strict=True)]
        lengths, new = [b.shape[1] for b in self.rows], [b.shape[1] for b in like]
        if lengths != new:
            raise ValueError(
                f"The kept rows have {lengths} elements and the new ones {new}: a rule that keeps rows needs "
                "batches of one size, or a space whose rows do not depend on the batch."
            )
        self.rows = [kept.to(block.device) for kept, block in zip(self.rows, like, strict=True)]
        return [kept[torch.as_tensor(tasks, device=kept.device)] for kept in self.rows]

    def put(self, rows: list[Tensor], tasks: np.ndarray) -> None:
        """Keep these rows of ``tasks``, and count that they were seen."""
        for kept, block in zip(self.rows, rows, strict=True):
            kept[torch.as_tensor(tasks, device=kept.device)] = block
        self.counts[tasks] += 1

    def move_towards(self, new: list[Tensor], tasks: np.ndarray, shares: np.ndarray) -> list[Tensor]:
        """Running averages: y <- y + share (g - y), y <- g for a task that was never seen; returns the y."""
        shares = np.where(self.counts[tasks] == 0, 1.0, shares)
        averaged = []
        for kept, block in zip(self.take(new, tasks), new, strict=True):
            share = torch.as_tensor(shares, dtype=kept.dtype, device=kept.device)[:, None]
            averaged.append(torch.lerp(kept, block.to(kept.dtype), share))
        self.put(averaged, tasks)
        return averaged

    def get_extra_state(self) -> dict[str, Any]:
        """Return rows and counts."""
        return {"counts": self.counts.tolist(), "rows": self.rows}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Continue from rows and counts; ValueError where they are of another number of tasks."""
        if len(state["counts"]) != len(self.counts):
            raise ValueError(f"The rows were kept for {len(state['counts'])} tasks, but num_tasks={len(self.counts)}.")
        self.counts = np.array(state["counts"], dtype=np.int64)
        self.rows = [block.clone() for block in state["rows"]]


def masked_weights(rows: list[Tensor], factors: list[Tensor]) -> Tensor:
    """What elementwise ``factors`` come to as weights: <factor * g, g> / <g, g>, zero for a zero row."""
    used, whole = torch.zeros(2, len(rows[0]), dtype=torch.float64, device=rows[0].device)
    for block, factor in zip(rows, factors, strict=True):
        whole += _squares(block)
        used += _squares(block * factor.sqrt())
    return (used / whole.where(whole > 0, 1)).cpu()


def _squares(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).square()


def weighted_sum(rows: list[Tensor], weights: Tensor | Array) -> list[Tensor]:
    """sum_k w_k g_k, a leaf at a time, in float32 or better."""
    kinds = [torch.promote_types(block.dtype, torch.float32) for block in rows]
    return [torch.as_tensor(weights).to(b.device, kind) @ b.to(kind) for b, kind in zip(rows, kinds, strict=True)]


def gram_of(rows: list[Tensor]) -> Array:
    """The Gram matrix of rows, in float64."""
    total = torch.zeros(len(rows[0]), len(rows[0]), dtype=torch.float64, device=rows[0].device)
    for block in rows:
        for chunk in block.split(CHUNK, 1):
            total += chunk.double() @ chunk.double().T
    return total.cpu().numpy()
