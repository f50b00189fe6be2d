from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mtl.errors import require
from mtl.gradients.transfer import send
from mtl.weightings.task_weighting import TaskWeighting


class Random(TaskWeighting):
    """Random loss weighting (RLW): new random weights in every step.

    ``w = softmax(x)`` with ``x_k`` from the standard normal distribution.

    Scale: the weights of all K tasks sum to 1, as in the paper, so steps are about 1/K of those of equal weighting. The
    draw is always over all tasks: absent tasks change neither the weights of the others nor later draws.

    The draws come from the weighting's own generator on the CPU, with the given ``seed``: they are the same on every
    device.

    Source: Lin et al. 2022, "Reasonable Effectiveness of Random Weighting: A Litmus Test for Multi-Task Learning"
    (TMLR), RLW with the standard normal distribution.
    """

    affine = True
    current: Tensor

    def __init__(self, tasks: Sequence[str], seed: int = 0) -> None:
        super().__init__(tasks)
        require("seed", seed, "from 0 to 2^63 - 1", 0 <= seed < 2**63)
        self.generator = torch.Generator().manual_seed(seed)
        self.register_buffer("current", torch.empty(len(tasks)))
        self._draw()

    def forward(self, task: str, loss: Tensor) -> Tensor:
        """Return ``loss`` times the task's weight in this step."""
        return loss * self.current[self._index[task]]

    def observe(self, losses: Mapping[str, Tensor], gram: Tensor | None) -> None:
        """Draw the weights of the next step."""
        self._draw()

    def _draw(self) -> None:
        weights = torch.randn(len(self._index), generator=self.generator).softmax(0)
        self.current.copy_(send(weights, self.current.device))

    def get_extra_state(self) -> dict[str, Any]:
        """Return the tasks and the generator's state."""
        return super().get_extra_state() | {"generator": self.generator.get_state()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Continue from the tasks and a generator's state."""
        super().set_extra_state(state)
        self.generator.set_state(state["generator"].cpu())
