from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedParameter
from torch.utils import _pytree as pytree

from mtl.architectures.stages import Stages, channel_axis, mix_states, stages


class FiLM:
    """One backbone, conditioned on the task: after every stage ``x_k ← γ_k ⊙ x_k + β_k``, channel by channel.

    The first stage runs once, the others for every task, in one batch of K times the samples; batch statistics are
    those of all tasks. γ begins at one and β at zero, as hard sharing. The last γ and β are the task's head's, the
    others are in the trunk.

    Tasks have features of their own, and their gradients there nothing in common: a rule needs
    ``strategy.space=parameters``.

    Source: Perez et al. 2018, equation 2, with the task as what is conditioned on. ValueError for a backbone without
    stages.
    """

    def __init__(self, backbone: Callable[[], nn.Module], tasks: Sequence[str]) -> None:
        self._stages = stages(backbone(), states=True)
        self.trunk = ConditionedStages(self._stages, tasks)

    def reader(self, task: str) -> nn.Module:
        """The last modulation of a task."""
        return LastModulation(task, self._stages)


class Modulation(LazyModuleMixin, nn.Module):
    """``γ ⊙ x + β``; the number of channels is found in the first forward pass."""

    cls_to_become = None

    def __init__(self, last_axis_is_channels: bool) -> None:
        super().__init__()
        self.last_axis_is_channels = last_axis_is_channels
        self.gamma: Any = UninitializedParameter()
        self.beta: Any = UninitializedParameter()

    def initialize_parameters(self, x: Tensor) -> None:
        """One and zero."""
        if self.has_uninitialized_params():
            channels = x.shape[channel_axis(x, self.last_axis_is_channels)]
            with torch.no_grad():
                self.gamma.materialize((channels,))
                self.beta.materialize((channels,))
                self.gamma.fill_(1)
                self.beta.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        shape = [1] * x.dim()
        shape[channel_axis(x, self.last_axis_is_channels)] = -1
        return self.gamma.view(shape) * x + self.beta.view(shape)

    def sharing_parameters(self) -> Iterator[nn.Parameter]:
        """γ and β."""
        yield from (self.gamma, self.beta)


class ConditionedStages(nn.Module):
    """Inputs -> the last stage's output, ``features``, of every task, and ``levels``, the modulated ones below it.

    The levels are there where heads read a pyramid.
    """

    def __init__(self, parts: Stages, tasks: Sequence[str]) -> None:
        super().__init__()
        self.tasks, self.units, self.reads_levels = list(tasks), nn.ModuleList(parts.units), parts.reads_levels
        self.modulations = nn.ModuleList(
            nn.ModuleDict({task: Modulation(parts.last_axis_is_channels) for task in tasks}) for _ in parts.units[1:]
        )

    def forward(self, inputs: Any) -> dict[str, Any]:
        """The common features."""
        levels: dict[str, list[Tensor]] = {task: [] for task in self.tasks}
        first = self.units[0](inputs)
        outputs = [first] * len(self.tasks)
        for unit, row in zip(list(self.units)[1:], self.modulations, strict=True):
            own = [modulated(row[task], x) for task, x in zip(self.tasks, outputs, strict=True)]  # type: ignore[index]
            for task, x in zip(self.tasks, own, strict=True) if self.reads_levels else ():
                levels[task].append(x)
            outputs = self._apart(unit(pytree.tree_map(lambda *parts: torch.cat(parts), *own)))
        return {"features": dict(zip(self.tasks, outputs, strict=True)), "levels": levels}

    def _apart(self, outputs: Any) -> list[Any]:
        """The outputs of each task, of those of all in one batch."""
        leaves, form = pytree.tree_flatten(outputs)
        parts = zip(*(leaf.chunk(len(self.tasks)) for leaf in leaves), strict=True)
        return [pytree.tree_unflatten(own, form) for own in parts]


def modulated(modulation: nn.Module, x: Any) -> Any:
    """The modulation of an output; of a state, of its tokens."""
    return mix_states(lambda own: modulation(*own), [x], 0)


class LastModulation(nn.Module):
    """The features of a task: its last modulation, and what the backbone makes of the result."""

    def __init__(self, task: str, parts: Stages) -> None:
        super().__init__()
        self.task, self.modulation = task, Modulation(parts.last_axis_is_channels)
        self.read = copy.deepcopy(parts.read)

    def forward(self, features: Mapping[str, Any]) -> Any:
        """What one backbone would return."""
        own = features["features"][self.task]
        return self.read([*features["levels"][self.task], modulated(self.modulation, own)])
