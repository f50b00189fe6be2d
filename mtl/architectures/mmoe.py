from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mtl.architectures.experts import distinct, make_experts, mix, stack
from mtl.architectures.gate import Gate, gate_vector


class MMoE:
    """Multi-gate mixture of experts: task k's head reads ``sum_e g_k(x)_e f_e(x)``, ``g_k(x) = softmax(W_k x + b_k)``.

    The ``experts`` f_e are backbones, and the tasks share them; the gate belongs to task k, and reads the inputs,
    flattened.

    Source: Ma et al. 2018, equations 6 and 7; b is ours.
    """

    def __init__(self, backbone: Callable[[], nn.Module], tasks: Sequence[str], experts: int = 3) -> None:
        self.trunk = StackedExperts(make_experts(distinct(backbone), experts))
        self._count = experts

    def reader(self, task: str) -> nn.Module:
        """The gate of a task, and its mixture."""
        return Mixture(self._count)


class StackedExperts(nn.Module):
    """Inputs -> the experts' features, stacked on axis 1, and what gates read, which no parameter makes."""

    def __init__(self, experts: nn.ModuleList) -> None:
        super().__init__()
        self.experts = experts

    def forward(self, inputs: Any) -> dict[str, Any]:
        """The common features."""
        return {"experts": stack([expert(inputs) for expert in self.experts]), "gate": gate_vector(inputs, pool=False)}


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
