from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from mtl.architectures.experts import concatenate, distinct, mix, stack
from mtl.architectures.gate import Gate, flattened, pooled
from mtl.architectures.levels import levels_of

Vectors = Callable[[Any], Tensor]  # [B, ...] -> [B, d]


class PLE:
    """Progressive layered extraction: ``levels`` levels of experts, those of each task and shared ones, under gates.

    An expert of level j is the j-th part of a backbone. With ``g^{k,0} = g^{s,0} = x`` and for j = 1, …, N

    - experts: ``E_k^j`` of task k on ``g^{k,j-1}``, ``own`` of them; ``E_s^j`` on ``g^{s,j-1}``, ``shared`` of them;
    - task k: ``g^{k,j} = softmax(W_k^j g^{k,j-1} + b) [E_k^j; E_s^j]``; its head reads ``g^{k,N}``;
    - the shared gate mixes all: ``g^{s,j} = softmax(W_s^j g^{s,j-1} + b) [E_1^j; …; E_K^j; E_s^j]``.

    One level is CGC. With ``from_stage`` s the first s stages are one stem, whose output is x; None is what the
    backbone says, mostly 0. Gates of the first level read the inputs, flattened, or what the stem gives, and those
    above what the level below gives, averaged over positions. The trunk is what other tasks depend on: all up to level
    N - 1 but the tasks' last gates, and the shared experts of level N.

    Source: Tang et al. 2020, section 4.2 and equations 4 to 6; b is ours. ValueError for more levels than the backbone
    has stages.
    """

    def __init__(
        self,
        backbone: Callable[[], nn.Module],
        tasks: Sequence[str],
        levels: int = 2,
        shared: int = 2,
        own: int = 1,
        from_stage: int | None = None,
    ) -> None:
        for key, count in {"levels": levels, "shared": shared, "own": own}.items():
            if count < 1:
                raise ValueError(f"{key}={count} must be 1 or more.")
        fresh = distinct(backbone)
        parts = [levels_of(fresh(), levels, from_stage) for _ in range(shared)]
        common = [expert.modules for expert in parts]
        private = {task: [levels_of(fresh(), levels, from_stage).modules for _ in range(own)] for task in tasks}
        # What the gates of each level read of what its experts read.
        above = partial(pooled, last_axis_is_channels=parts[0].last_axis_is_channels)
        vectors: list[Vectors] = [flattened if parts[0].stem is None else above, *[above] * (levels - 1)]
        lower = [
            Level(
                {task: [modules[j] for modules in experts] for task, experts in private.items()},
                [modules[j] for modules in common],
                vectors[j],
                with_gates=j < levels - 2,  # those of level N - 1 are in the readers
            )
            for j in range(levels - 1)
        ]
        self.trunk = Levels(tasks, lower, [modules[-1] for modules in common], parts[0].stem)
        self._last = {task: [modules[-1] for modules in experts] for task, experts in private.items()}
        self._shared, self._vectors = shared, vectors[-2:]

    def reader(self, task: str) -> nn.Module:
        """The last two gates of a task, and its experts of the last level."""
        return LastLevel(task, self._last[task], self._shared, self._vectors)


class Level(nn.Module):
    """The experts of one level, the shared gate, and with ``with_gates`` the tasks' gates."""

    def __init__(
        self, own: Mapping[str, Sequence[nn.Module]], shared: Sequence[nn.Module], vectors: Vectors, with_gates: bool
    ) -> None:
        super().__init__()
        self.own = nn.ModuleDict({task: nn.ModuleList(experts) for task, experts in own.items()})
        self.shared, self.vectors = nn.ModuleList(shared), vectors
        self.shared_gate = Gate(sum(map(len, own.values())) + len(shared))
        gates = {task: Gate(len(experts) + len(shared)) for task, experts in own.items()} if with_gates else {}
        self.gates = nn.ModuleDict(gates)

    def forward(self, by_task: Mapping[str, Any], common: Any) -> tuple[dict[str, Any], Any, dict[str, Any], Any]:
        """``g^{k,j-1}`` by task, ``g^{s,j-1}`` -> the tasks' experts, the shared ones, ``g^{k,j}``, ``g^{s,j}``."""
        experts: Any = self.own.items()
        own = {task: stack([expert(by_task[task]) for expert in own]) for task, own in experts}
        shared = stack([expert(common) for expert in self.shared])
        mixed = {
            task: mix(gate(self.vectors(by_task[task])), concatenate([own[task], shared]))
            for task, gate in self.gates.items()
        }
        weights = self.shared_gate(self.vectors(common))
        return own, shared, mixed, mix(weights, concatenate([*own.values(), shared]))


class Levels(nn.Module):
    """Inputs -> what the readers of all tasks need of the lower ``levels``, and the shared experts of the last."""

    def __init__(
        self, tasks: Sequence[str], levels: Sequence[Level], last: Sequence[nn.Module], stem: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.stem = stem
        self.tasks, self.levels, self.last = list(tasks), nn.ModuleList(levels), nn.ModuleList(last)

    def forward(self, inputs: Any) -> dict[str, Any]:
        """The common features: ``below``, g^{k,N-2} by task; ``own`` and ``shared``, level N - 1; ``last``, E_s^N."""
        common = inputs if self.stem is None else self.stem(inputs)
        by_task = dict.fromkeys(self.tasks, common)
        features: dict[str, Any] = {"below": by_task}
        for level in self.levels:
            features = {"below": by_task}
            features["own"], features["shared"], by_task, common = level(by_task, common)
        return features | {"last": stack([expert(common) for expert in self.last])}


class LastLevel(nn.Module):
    """The features of task k, ``g^{k,N}``: its gate of level N - 1, if there is one, its experts, and its last gate.

    ``vectors``: of both gates, or the last one alone.
    """

    def __init__(self, task: str, experts: Sequence[nn.Module], shared: int, vectors: Sequence[Vectors]) -> None:
        super().__init__()
        self.task, self.vectors, self.experts = task, list(vectors), nn.ModuleList(experts)
        self.below = Gate(len(experts) + shared) if len(vectors) > 1 else None
        self.gate = Gate(len(experts) + shared)

    def forward(self, features: Mapping[str, Any]) -> Any:
        """What one backbone would return."""
        x = features["below"][self.task]
        if self.below is not None:
            weights = self.below(self.vectors[0](x))
            x = mix(weights, concatenate([features["own"][self.task], features["shared"]]))
        own = stack([expert(x) for expert in self.experts])
        return mix(self.gate(self.vectors[-1](x)), concatenate([own, features["last"]]))

    def logged(self) -> dict[str, Tensor]:
        """The last gate's: the task's own experts come first."""
        return self.gate.logged()
