"""Base class of the rules that give some tasks more than others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mtl.preference import Preference, preferences
from mtl.rules.rule import Array, Rule, as_matrix, task_indices


class PreferenceRule(Rule):
    """A rule with a ``preference``: a positive number for each task, of which only the ratios count.

    ``preference`` maps tasks to numbers, 1 where it names none, or has one number a task in their order; None or empty:
    all tasks alike, and no step is computed otherwise. ``tasks``: their names, in the order of the matrix, by which the
    preference is checked. It is scaled to the mean 1 over the tasks in the batch. What it means stands in each rule.
    """

    def __init__(self, preference: Preference | None = None, tasks: Sequence[str] | None = None) -> None:
        super().__init__()
        self.preference = np.array(preferences(preference, tasks)) if preference else None

    def forward(self, gram: Tensor, losses: Tensor | None = None, present: Sequence[int] | None = None) -> Tensor:
        """Return the weights ``[K]``; ``present``: the indices of the tasks in the matrix, None for all tasks."""
        if self.preference is None:
            return super().forward(gram)
        matrix = as_matrix(gram)
        preference = self.preference[task_indices(len(matrix), len(self.preference), present)]
        if not np.isfinite(matrix).all():
            return torch.full((len(matrix),), torch.nan, dtype=torch.float64)
        return torch.from_numpy(self.weigh_preferred(matrix, preference / preference.mean()))

    def weigh_preferred(self, gram: Array, preference: Array) -> Array:
        """The weights for a preference with the mean 1: of the task gradients times their preference."""
        return preference * self.weigh(preference[:, None] * gram * preference)
