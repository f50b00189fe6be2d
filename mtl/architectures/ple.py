from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mtl.architectures.experts import concatenate, distinct, mix, stack
from mtl.architectures.gate import Gate, gate_vector
from mtl.architectures.levels import levels_of


class PLE:
    """Progressive layered extraction: ``levels`` levels of experts, those of each task and shared ones, under gates.

    An expert of level j is the j-th part of a backbone. With ``g^{k,0} = g^{s,0} = x`` and for j = 1, …, N

    - experts: ``E_k^j`` of task k on ``g^{k,j-1}``, ``own`` of them; ``E_s^j`` on ``g^{s,j-1}``, ``shared`` of them;
    - task k: ``g^{k,j} = softmax(W_k^j g^{k,j-1} + b) [E_k^j; E_s^j]``; its head reads ``g^{k,N}``;
    - the shared gate mixes all: ``g^{s,j} = softmax(W_s^j g^{s,j-1} + b) [E_1^j; …; E_K^j; E_s^j]``.

    One level is CGC. A gate reads the inputs flattened, and maps averaged over their positions. The trunk is what other
    tasks depend on: all up to level N - 1 but the last gates of the tasks, and the shared experts of level N.

    Source: Tang et al. 2020, section 4.2 and equations 4 to 6; b is ours. ValueError for more levels than the backbone
    has parts.
    """

    def __init__(
        self,
        backbone: Callable[[], nn.Module],
        tasks: Sequence[str],
        levels: int = 2,
        shared: int = 2,
        own: int = 1,
    ) -> None:
        for key, count in {"levels": levels, "shared": shared, "own": own}.items():
            if count < 1:
                raise ValueError(f"{key}={count} must be 1 or more.")
        fresh = distinct(backbone)
        common = [levels_of(fresh(), levels) for _ in range(shared)]
        private = {task: [levels_of(fresh(), levels) for _ in range(own)] for task in tasks}
        lower = [
            Level(
                {task: [parts[j] for parts in experts] for task, experts in private.items()},
                [parts[j] for parts in common],
                with_gates=j < levels - 2,  # those of level N - 1 are in the readers
            )
            for j in range(levels - 1)
        ]
        self.trunk = Levels(tasks, lower, [parts[-1] for parts in common])
        self._last = {task: [parts[-1] for parts in experts] for task, experts in private.items()}
        self._shared, self._levels = shared, levels

    def reader(self, task: str) -> nn.Module:
        """The last two gates of a task, and its experts of the last level."""
        return LastLevel(task, self._last[task], self._shared, self._levels)


class Level(nn.Module):
    """The experts of one level, the shared gate, and with ``with_gates`` the tasks' gates."""

    def __init__(self, own: Mapping[str, Sequence[nn.Module]], shared: Sequence[nn.Module], with_gates: bool) -> None:
        super().__init__()
        self.own = nn.ModuleDict({task: nn.ModuleList(experts) for task, experts in own.items()})
        self.shared = nn.ModuleList(shared)
        self.shared_gate = Gate(sum(map(len, own.values())) + len(shared))
        gates = {task: Gate(len(experts) + len(shared)) for task, experts in own.items()} if with_gates else {}
        self.gates = nn.ModuleDict(gates)

    def forward(self, inputs: Mapping[str, Any], common: Any, is_first: bool) -> tuple[dict[str, Any], Any, Any]:
        """``g^{k,j-1}`` by task and ``g^{s,j-1}`` -> the tasks' experts, the shared experts, and ``g^{s,j}``."""
        own = {
            task: stack([expert(inputs[task]) for expert in experts])  # type: ignore[attr-defined]
            for task, experts in self.own.items()
        }
        shared = stack([expert(common) for expert in self.shared])
        weights = self.shared_gate(gate_vector(common, pool=not is_first))
        return own, shared, mix(weights, concatenate([*own.values(), shared]))


class Levels(nn.Module):
    """Inputs -> what the readers of all tasks need of the lower ``levels``, and the shared experts of the last."""

    def __init__(self, tasks: Sequence[str], levels: Sequence[Level], last: Sequence[nn.Module]) -> None:
        super().__init__()
        self.tasks, self.levels, self.last = list(tasks), nn.ModuleList(levels), nn.ModuleList(last)

    def forward(self, inputs: Any) -> dict[str, Any]:
        """The common features: ``inputs``, ``g^{k,N-2}``; ``own`` and ``shared``, level N - 1; ``last``, E_s^N."""
        by_task, common = dict.fromkeys(self.tasks, inputs), inputs
        features: dict[str, Any] = {"inputs": by_task}
        for number, level in enumerate(self.levels):
            own, shared, common = level(by_task, common, is_first=number == 0)
            features = {"inputs": by_task, "own": own, "shared": shared}
            by_task = {
                task: mix(gate(gate_vector(by_task[task], pool=number > 0)), concatenate([own[task], shared]))
                for task, gate in level.gates.items()  # type: ignore[union-attr, operator]
            }
        return features | {"last": stack([expert(common) for expert in self.last])}


class LastLevel(nn.Module):
    """The features of task k, ``g^{k,N}`` with N = ``levels``: gate N - 1, its experts, gate N."""

    def __init__(self, task: str, experts: Sequence[nn.Module], shared: int, levels: int) -> None:
        super().__init__()
        self.task, self.levels, self.experts = task, levels, nn.ModuleList(experts)
        self.below = Gate(len(experts) + shared) if levels > 1 else None
        self.gate = Gate(len(experts) + shared)

    def forward(self, features: Mapping[str, Any]) -> Any:
        """What one backbone would return."""
        x = features["inputs"][self.task]
        if self.below is not None:
            weights = self.below(gate_vector(x, pool=self.levels > 2))
            x = mix(weights, concatenate([features["own"][self.task], features["shared"]]))
        own = stack([expert(x) for expert in self.experts])
        return mix(self.gate(gate_vector(x, pool=self.levels > 1)), concatenate([own, features["last"]]))

    def logged(self) -> dict[str, Tensor]:
        """The last gate's: the task's own experts come first."""
        return self.gate.logged()
