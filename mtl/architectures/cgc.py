from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mtl.architectures.experts import concatenate, distinct, make_experts, mix, stack
from mtl.architectures.gate import Gate, gate_vector


class CGC:
    """Customized gate control: task k's head reads ``w_k(x) [E_k(x); E_s(x)]``, ``w_k(x) = softmax(W_k x + b_k)``.

    The ``own`` experts E_k belong to task k and the ``shared`` experts E_s to all; all are backbones. The gate reads
    the inputs, flattened.

    Source: Tang et al. 2020, equations 1 to 3; b is ours.
    """

    def __init__(self, backbone: Callable[[], nn.Module], tasks: Sequence[str], shared: int = 2, own: int = 1) -> None:
        self._backbone, self._shared, self._own = distinct(backbone), shared, own
        self.trunk = SharedExperts(make_experts(self._backbone, shared, "shared"))

    def reader(self, task: str) -> nn.Module:
        """The experts of a task's own, its gate, and its mixture."""
        return OwnExperts(make_experts(self._backbone, self._own, "own"), self._shared)


class SharedExperts(nn.Module):
    """Inputs -> the shared experts' features, stacked on axis 1, and the inputs, which a task's own experts read."""

    def __init__(self, experts: nn.ModuleList) -> None:
        super().__init__()
        self.experts = experts

    def forward(self, inputs: Any) -> dict[str, Any]:
        """The common features."""
        return {"experts": stack([expert(inputs) for expert in self.experts]), "inputs": inputs}


class OwnExperts(nn.Module):
    """The features that a gate of a task's own makes of the task's experts and of ``shared`` ones."""

    def __init__(self, experts: nn.ModuleList, shared: int) -> None:
        super().__init__()
        self.experts, self.gate = experts, Gate(len(experts) + shared)

    def forward(self, features: Mapping[str, Any]) -> Any:
        """What one backbone would return."""
        inputs = features["inputs"]
        own = stack([expert(inputs) for expert in self.experts])
        return mix(self.gate(gate_vector(inputs, pool=False)), concatenate([own, features["experts"]]))

    def logged(self) -> dict[str, Tensor]:
        """The gate's: the task's own experts come first."""
        return self.gate.logged()
