from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from mtl.architectures.experts import Stem, distinct, make_experts, mix, stack
from mtl.architectures.gate import Gate, flattened


class MMoE:
    """Multi-gate mixture of experts: task k's head reads ``sum_e g_k(x)_e f_e(x)``, ``g_k(x) = softmax(W_k x + b_k)``.

    The ``experts`` f_e are backbones, and the tasks share them; the gate belongs to task k. With ``from_stage`` s the
    first s stages are one stem, and an expert is a backbone above it; None is what the backbone says, mostly 0.
    ``gate_input``: a gate reads the ``input``, flattened, or what the ``stem`` gives the experts, averaged over
    positions; None is the stem where there is one.

    Source: Ma et al. 2018, equations 6 and 7; b is ours.
    """

    def __init__(
        self,
        backbone: Callable[[], nn.Module],
        tasks: Sequence[str],
        experts: int = 3,
        from_stage: int | None = None,
        gate_input: Literal["input", "stem"] | None = None,
    ) -> None:
        self.trunk = StackedExperts(*make_experts(distinct(backbone), experts, from_stage), gate_input)
        self._count = experts

    def reader(self, task: str) -> nn.Module:
        """The gate of a task, and its mixture."""
        return Mixture(self._count)


class StackedExperts(nn.Module):
    """Inputs -> the experts' features, stacked on axis 1, and what gates read, as vectors ``[B, d]``.

    With ``passes_on`` also what the experts read: a task has experts of its own.
    """

    def __init__(
        self,
        stem: Stem,
        experts: nn.ModuleList,
        gate_input: Literal["input", "stem"] | None = None,
        passes_on: bool = False,
    ) -> None:
        super().__init__()
        self.stem, self.experts, self.passes_on = stem, experts, passes_on
        self.gates_read_stem = gate_input == "stem" or (gate_input is None and len(stem.units) > 0)

    def forward(self, inputs: Any) -> dict[str, Any]:
        """The common features."""
        below = self.stem(inputs)
        features = {
            "experts": stack([expert(below) for expert in self.experts]),
            "gate": self.stem.pooled(below) if self.gates_read_stem else flattened(inputs),
        }
        return features | {"below": below} if self.passes_on else features


class Mixture(nn.Module):
    """The features that a gate of a task's own makes of ``experts`` stacked ones."""

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.gate = Gate(experts)

    def forward(self, features: Mapping[str, Any]) -> Any:
        """What one backbone would return."""
        return mix(self.gate(features["gate"]), features["experts"])

    def logged(self) -> dict[str, Tensor]:
        """The gate's."""
        return self.gate.logged()
