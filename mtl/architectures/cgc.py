from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mtl.architectures.experts import concatenate, distinct, make_experts, mix, stack
from mtl.architectures.gate import Gate
from mtl.architectures.mmoe import StackedExperts


class CGC:
    """Customized gate control: task k's head reads ``w_k(x) [E_k(x); E_s(x)]``, ``w_k(x) = softmax(W_k x + b_k)``.

    The ``own`` experts E_k belong to task k and the ``shared`` experts E_s to all; all are backbones. The gate reads
    the inputs, flattened; with ``from_stage`` s the first s stages are one stem, and it reads what that gives the
    experts, averaged over positions.

    Source: Tang et al. 2020, equations 1 to 3; b is ours.
    """

    def __init__(
        self,
        backbone: Callable[[], nn.Module],
        tasks: Sequence[str],
        shared: int = 2,
        own: int = 1,
        from_stage: int | None = None,
    ) -> None:
        if own < 1:
            raise ValueError(f"own={own} must be 1 or more.")
        self._backbone, self._shared, self._own, self._from_stage = distinct(backbone), shared, own, from_stage
        self.trunk = StackedExperts(*make_experts(self._backbone, shared, from_stage, "shared"), passes_on=True)

    def reader(self, task: str) -> nn.Module:
        """The experts of a task's own, its gate, and its mixture."""
        _, experts = make_experts(self._backbone, self._own, self._from_stage, "own")
        return OwnExperts(experts, self._shared)


class OwnExperts(nn.Module):
    """The features that a gate of a task's own makes of the task's experts and of ``shared`` ones."""

    def __init__(self, experts: nn.ModuleList, shared: int) -> None:
        super().__init__()
        self.experts, self.gate = experts, Gate(len(experts) + shared)

    def forward(self, features: Mapping[str, Any]) -> Any:
        """What one backbone would return."""
        own = stack([expert(features["below"]) for expert in self.experts])
        return mix(self.gate(features["gate"]), concatenate([own, features["experts"]]))

    def logged(self) -> dict[str, Tensor]:
        """The gate's: the task's own experts come first."""
        return self.gate.logged()
