from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mtl.errors import require


class EpochMeans(nn.Module):
    """The mean losses of the tasks over an epoch of ``steps_per_epoch`` calls of ``add``."""

    sums: Tensor
    counts: Tensor

    def __init__(self, num_tasks: int, steps_per_epoch: int) -> None:
        super().__init__()
        require("steps_per_epoch", steps_per_epoch, "1 or more", steps_per_epoch >= 1)
        self.steps_per_epoch = steps_per_epoch
        self.steps = 0
        self.register_buffer("sums", torch.zeros(num_tasks))
        self.register_buffer("counts", torch.zeros(num_tasks))

    @property
    def epoch(self) -> int:
        """The number of finished epochs."""
        return self.steps // self.steps_per_epoch

    def add(self, losses: Tensor | None) -> Tensor | None:
        """Add a step with losses ``[K]``, NaN for absent tasks; None for a step without labels.

        Returns the means ``[K]`` at the end of an epoch, NaN for tasks without labels in it; otherwise None.
        """
        if losses is not None:
            known = losses.isfinite()
            self.sums += losses.where(known, 0)
            self.counts += known
        self.steps += 1
        if self.steps % self.steps_per_epoch:
            return None
        means = self.sums / self.counts  # 0 / 0 is NaN
        self.sums.zero_()
        self.counts.zero_()
        return means

    def get_extra_state(self) -> dict[str, Any]:
        """Return the number of steps; a Python integer, so that reading it does not wait for the device."""
        return {"steps": self.steps}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Continue from a number of steps."""
        self.steps = state["steps"]
