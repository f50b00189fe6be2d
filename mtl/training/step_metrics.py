"""The metrics of a training step, as they are logged: a new one is added to ``step_metrics`` and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mtl.affinity import first_order_affinity, named_affinity
from mtl.conflict import agreement_metrics, conflict_metrics, cosines
from mtl.descriptions import TOLERANCE
from mtl.engine.look import rate_of_shared
from mtl.engine.lookahead import Lookahead
from mtl.gradients.transfer import HostCopy, widest
from mtl.strategies import AuditResult, StepResult
from mtl.system.timer import StepTimer


@dataclass(frozen=True)
class StepValues:
    """A step's losses, weights and gradient norm (before clipping), as numbers."""

    losses: dict[str, float]
    weights: dict[str, float]
    grad_norm: float

    @property
    def is_finite(self) -> bool:
        """Whether the losses and the norm are finite."""
        return all(map(math.isfinite, [*self.losses.values(), self.grad_norm]))


class StepNumbers:
    """The same on their way from the device, in one copy that nothing waits for until ``read``.

    ``finite``: whether the losses and the norm are, as a scalar on the device.
    """

    def __init__(self, result: StepResult, grad_norm: Tensor) -> None:
        self._result = result
        scalars = [*result.losses.values(), *result.weights.values()]
        device = scalars[0].device if scalars else grad_norm.device
        kind = widest(device)
        norm = grad_norm.to(device, kind)
        numbers = torch.cat([torch.stack(scalars).to(kind), norm[None]]) if scalars else norm[None]
        count = len(result.losses)
        self.finite = torch.cat([numbers[:count], numbers[-1:]]).isfinite().all()
        self._copy = HostCopy(numbers)

    def read(self) -> StepValues:
        """Wait for them."""
        numbers, count = self._copy.read(), len(self._result.losses)
        return StepValues(
            dict(zip(self._result.losses, numbers[:count], strict=True)),
            dict(zip(self._result.weights, numbers[count:-1], strict=True)),
            numbers[-1],
        )


@dataclass(frozen=True)
class Outcome:
    """One optimizer step: the strategy's result, its numbers, and each group's learning rate.

    ``applied``: False where the step was skipped, because a loss or a gradient was not finite. ``lookahead``: where it
    was asked for.
    """

    result: StepResult
    applied: bool
    values: StepValues
    rates: dict[str, float]
    lookahead: Lookahead | None = None

    @property
    def lr(self) -> float:
        """The learning rate of the heads, or of what is trained where they are not."""
        return self.rates.get("heads", next(iter(self.rates.values())))


def step_metrics(
    outcome: Outcome, conflicts: CosineAverage | None, timer: StepTimer, tolerance: float = TOLERANCE
) -> dict[str, float]:
    """Every metric of a step by its logged name; the cosines are added to ``conflicts``, and the timer starts anew.

    ``conflicts``: None in a step whose Gram matrix is there for something else, as a rule or an affinity: then no
    conflict is logged. ``tolerance``: two tasks' gradients conflict where their cosine is below its negative.
    """
    result, values = outcome.result, outcome.values
    metrics = {f"loss/{name}": loss for name, loss in values.losses.items()}
    if values.losses:
        metrics["loss/total"] = sum(values.losses.values())
    metrics |= {f"weight/{name}": weight for name, weight in values.weights.items()}
    for group, weights in result.group_weights.items():
        metrics |= {f"rule_weight/{group}/{name}": weight for name, weight in weights.items()}
    metrics |= {"grad_norm": values.grad_norm, "lr": outcome.lr}
    metrics |= {f"lr/{name}": rate for name, rate in outcome.rates.items()}
    if result.gram is not None and conflicts is not None:
        metrics |= conflicts.update(result.gram, result.measured or list(result.losses), tolerance)
    if result.audit is not None:
        metrics |= _audit_metrics(result.audit, tolerance)
    return metrics | timer.read()


def affinity_metrics(outcome: Outcome) -> dict[str, float]:
    """The affinities of a step's tasks by their logged names: the estimate, and from a lookahead both kinds."""
    result = outcome.result
    metrics: dict[str, float] = {}
    if result.gram is not None and len(result.own) > 1:
        losses, weights = (
            torch.stack([value.double() for value in own]) for own in zip(*result.own.values(), strict=True)
        )
        estimate = first_order_affinity(result.gram, losses, rate_of_shared(outcome.rates), weights)
        metrics |= named_affinity(estimate, list(result.own))
    if (ahead := outcome.lookahead) is not None:
        metrics |= named_affinity(ahead.first_order, ahead.tasks, "parameters")
        metrics |= named_affinity(ahead.affinity, ahead.tasks, "lookahead")
    return metrics


def _audit_metrics(audit: AuditResult, tolerance: float) -> dict[str, float]:
    assert audit.features is not None and audit.parameters is not None
    return agreement_metrics(audit.features, audit.parameters, audit.tasks, audit.weights, tolerance)


class CosineAverage:
    """The mean cosine of every pair of tasks' gradients, over the steps since it was last read."""

    def __init__(self, tasks: Sequence[str]) -> None:
        self.tasks = list(tasks)
        self._clear()

    def update(self, gram: Tensor, present: Sequence[str], tolerance: float = TOLERANCE) -> dict[str, float]:
        """Add one Gram matrix over the tasks in ``present`` and return its conflict metrics."""
        matrix = cosines(gram)
        index = torch.tensor([self.tasks.index(task) for task in present])
        known = torch.isfinite(matrix)
        self._sum[index[:, None], index] += matrix.where(known, 0)
        self._count[index[:, None], index] += known
        return conflict_metrics(gram, present, tolerance)

    def mean(self) -> Tensor | None:
        """Read and start anew: ``[K, K]``, NaN for a pair that was never measured; None if no pair was."""
        matrix = self._sum / self._count if self._count.any() else None
        self._clear()
        return matrix

    def state_dict(self) -> dict[str, Tensor]:
        """The sums of the cosines, and how many they are."""
        return {"sum": self._sum.clone(), "count": self._count.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load what another average has saved."""
        self._sum, self._count = state["sum"].clone(), state["count"].clone()

    def _clear(self) -> None:
        self._sum = torch.zeros(len(self.tasks), len(self.tasks), dtype=torch.float64)
        self._count = torch.zeros_like(self._sum)
