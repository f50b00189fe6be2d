from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from mtl.architectures.experts import distinct, make_experts
from mtl.architectures.mmoe import Mixture, StackedExperts


class OMoE:
    """One-gate mixture of experts: every head reads ``sum_e g(x)_e f_e(x)``, with one gate for all tasks.

    The control that shows what MMoE's gate for each task is worth; the arguments are MMoE's.

    Source: Ma et al. 2018, section 3.2.
    """

    def __init__(
        self,
        backbone: Callable[[], nn.Module],
        tasks: Sequence[str],
        experts: int = 3,
        from_stage: int | None = None,
        gate_input: Literal["input", "stem"] | None = None,
    ) -> None:
        self.trunk = OneGate(StackedExperts(*make_experts(distinct(backbone), experts, from_stage), gate_input))

    def reader(self, task: str) -> None:
        """None: the heads read the mixture, which is what one backbone would return."""
        return


class OneGate(nn.Module):
    """The experts and their mixture by one gate."""

    def __init__(self, experts: StackedExperts) -> None:
        super().__init__()
        self.experts, self.mixture = experts, Mixture(len(experts.experts))

    def forward(self, inputs: Any) -> Any:
        """Inputs -> the features of one backbone."""
        return self.mixture(self.experts(inputs))

    def logged(self) -> dict[str, Tensor]:
        """The gate's."""
        return self.mixture.logged()
