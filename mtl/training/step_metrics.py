"""What is logged of a step: its losses and weights, and how the tasks' gradients agree."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtl.conflict import agreement_metrics, conflict_metrics, cosines
from mtl.strategies import AuditResult, StepResult


def loss_metrics(result: StepResult) -> dict[str, float]:
    """The losses and weights of a step by their logged names, fetched from the device at once."""
    names = list(result.losses)
    if not names:
        return {}
    values = torch.stack([*result.losses.values(), *result.weights.values()]).tolist()
    losses, weights = values[: len(names)], values[len(names) :]
    row = {f"loss/{name}": loss for name, loss in zip(names, losses, strict=True)}
    row["loss/total"] = sum(losses)
    return row | {f"weight/{name}": weight for name, weight in zip(names, weights, strict=True)}


def audit_metrics(audit: AuditResult) -> dict[str, float]:
    """What a parameter-space check found, by the logged names."""
    assert audit.features is not None and audit.parameters is not None
    return agreement_metrics(audit.features, audit.parameters, audit.tasks, audit.weights)


class CosineAverage:
    """The tasks' cosines, averaged since they were last asked for."""

    def __init__(self, tasks: Sequence[str]) -> None:
        self.tasks = list(tasks)
        self._clear()

    def update(self, gram: Tensor, present: Sequence[str]) -> dict[str, float]:
        """Add one Gram matrix over the tasks in ``present`` and return its conflict metrics."""
        matrix = cosines(gram)
        index = torch.tensor([self.tasks.index(task) for task in present])
        known = torch.isfinite(matrix)
        self._sum[index[:, None], index] += matrix.where(known, 0)
        self._count[index[:, None], index] += known
        return conflict_metrics(gram, present)

    def mean(self) -> Tensor | None:
        """The mean cosine of every pair ``[K, K]``, NaN where there is none; None if nothing was measured."""
        matrix = self._sum / self._count if self._count.any() else None
        self._clear()
        return matrix

    def state_dict(self) -> dict[str, Tensor]:
        """The cosines since they were last asked for: their sums and their numbers."""
        return {"sum": self._sum.clone(), "count": self._count.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from another run's."""
        self._sum, self._count = state["sum"].clone(), state["count"].clone()

    def _clear(self) -> None:
        self._sum = torch.zeros(len(self.tasks), len(self.tasks), dtype=torch.float64)
        self._count = torch.zeros_like(self._sum)
