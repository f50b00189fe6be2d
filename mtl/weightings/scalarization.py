from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mtl.preference import Preference, preferences
from mtl.weightings.task_weighting import stack
from mtl.weightings.weighting import Weighting


class Scalarization(Weighting):
    """Base class: one function of all losses and a preference; the weights are its derivatives.

    ``preference`` r maps tasks to positive numbers, 1 where it names none, or has one number a task in their order. It
    is scaled to the sum 1 over the tasks in the batch. ``reference`` z: a number below the losses of each task, as the
    least that is possible; 0 where it names none. A subclass defines ``derivatives``.
    """

    needs_all_losses = True

    def __init__(
        self,
        tasks: Sequence[str],
        preference: Preference | None = None,
        reference: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self._preference = dict(zip(tasks, preferences(preference or {}, tasks), strict=True))
        for task in reference or {}:
            if task not in tasks:
                raise ValueError(f"reference.{task} names no task; the tasks are {', '.join(tasks)}.")
        self._reference = dict(reference or {})

    def weights(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the derivatives of the scalarization with respect to the losses."""
        values = stack(losses.values())
        preference = values.new_tensor([self._preference[task] for task in losses])
        reference = values.new_tensor([self._reference.get(task, 0.0) for task in losses])
        weights = self.derivatives(values - reference, preference / preference.sum())
        return dict(zip(losses, weights.unbind(), strict=True))

    def derivatives(self, values: Tensor, preference: Tensor) -> Tensor:
        """The derivatives ``[K]`` at ``values`` ``[K]``, losses above their reference, for ``preference`` ``[K]``."""
        raise NotImplementedError(f"{type(self).__name__} must define derivatives.")


def safe_norm(values: Tensor) -> Tensor:
    """The length of ``values``, and 1 for a vector of zeros."""
    norm = torch.linalg.vector_norm(values)
    return torch.where(norm > 0, norm, 1)
