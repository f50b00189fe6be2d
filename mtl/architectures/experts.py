"""Experts: backbones of one kind on the same inputs, and the mixture of what they return."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from mtl.architectures.gate import pooled
from mtl.architectures.stages import Pyramid, stages

log = logging.getLogger(__name__)

NOISE = 0.01  # of each parameter's own deviation


def make_experts(
    backbone: Callable[[], nn.Module], count: int, from_stage: int | None = None, key: str = "experts"
) -> tuple[Stem, nn.ModuleList]:
    """``count`` experts, each a backbone from ``from_stage`` on, and the stages below, which are the first one's.

    None is the backbone's own ``first_expert_stage``, if it has one, and 0 otherwise.

    ValueError for less than one expert, with ``key``, the name of the argument that counts them, and for a stage that
    the backbone does not have.
    """
    if count < 1:
        raise ValueError(f"{key}={count} must be 1 or more.")
    parts = [_split(backbone(), from_stage) for _ in range(count)]
    return parts[0][0], nn.ModuleList(expert for _, expert in parts)


class Stem(nn.Module):
    """The stages that are shared below the experts; inputs -> the last one's output in a list.

    ``whole``: the outputs of all stages, as for a pyramid. Without stages it gives the inputs themselves.
    """

    def __init__(
        self, units: Sequence[nn.Module] = (), last_axis_is_channels: bool = False, whole: bool = False
    ) -> None:
        super().__init__()
        self.units, self.whole = nn.ModuleList(units), whole
        self.last_axis_is_channels = last_axis_is_channels

    def forward(self, inputs: Any) -> Any:
        """What the experts read."""
        outputs = [inputs]
        for unit in self.units:
            outputs.append(unit(outputs[-1]))
        return (outputs[1:] if self.whole else outputs[-1:]) if self.units else inputs

    def pooled(self, below: Any) -> Tensor:
        """What the experts read, averaged over its positions: ``[B, d]``."""
        return pooled(below[-1] if self.units else below, self.last_axis_is_channels)


class Upper(nn.Module):
    """An expert above a stem: the outputs of the stages below -> the features of the backbone."""

    def __init__(self, units: Sequence[nn.Module], read: nn.Module) -> None:
        super().__init__()
        self.units, self.read = nn.ModuleList(units), read

    def forward(self, below: Sequence[Tensor]) -> Any:
        """The rest of the backbone."""
        outputs = list(below)
        for unit in self.units:
            outputs.append(unit(outputs[-1]))
        return self.read(outputs)


def first_stage(backbone: nn.Module, from_stage: int | None) -> int:
    """The first stage of an expert: ``from_stage``, or what the backbone says where it is None."""
    return int(getattr(backbone, "first_expert_stage", 0)) if from_stage is None else from_stage


def _split(backbone: nn.Module, from_stage: int | None) -> tuple[Stem, nn.Module]:
    from_stage = first_stage(backbone, from_stage)
    if from_stage == 0:
        return Stem(), backbone
    units, read, last_axis_is_channels = stages(backbone, states=True)
    if not 0 < from_stage < len(units):
        stages_of_it = f"{len(units)} stages" if len(units) > 1 else "one stage"
        raise ValueError(
            f"from_stage={from_stage} must be from 0 to {len(units) - 1}: the backbone has {stages_of_it}, and the "
            "experts need at least the last."
        )
    stem = Stem(units[:from_stage], last_axis_is_channels, whole=isinstance(read, Pyramid))
    return stem, Upper(units[from_stage:], read)


def distinct(backbone: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """The same callable, but that what it makes is no copy of what it made first, as with pretrained weights it is.

    Equal experts have equal gradients, and stay equal. Copies get normal noise, a hundredth of each parameter's own
    deviation.
    """
    made: list[nn.Module] = []

    def make() -> nn.Module:
        made.append(backbone())
        if len(made) > 1 and _are_equal(made[0], made[-1]):
            if len(made) == 2:
                log.info("the experts begin as copies of one backbone, with noise of %g of each weight's spread", NOISE)
            _perturb(made[-1])
        return made[-1]

    return make


def stack(features: Sequence[Any]) -> Any:
    """The features of n experts, a tensor ``[B, ...]`` or a nesting of them, as one nesting of ``[B, n, ...]``."""
    return pytree.tree_map(lambda *own: torch.stack(own, 1) if is_mixed(own[0]) else own[0], *features)


def concatenate(stacked: Sequence[Any]) -> Any:
    """Several stacks of experts as one."""
    return pytree.tree_map(lambda *own: torch.cat(own, 1) if is_mixed(own[0]) else own[0], *stacked)


def mix(weights: Tensor, stacked: Any) -> Any:
    """``sum_e weights[:, e] stacked[:, e]``, tensor by tensor: ``[B, n]`` and ``[B, n, ...]`` -> ``[B, ...]``."""
    return pytree.tree_map(lambda own: _weighted_sum(weights, own) if is_mixed(own) else own, stacked)


def is_mixed(value: Any) -> bool:
    """Whether a part of the features is mixed: a tensor of floating point. Others, as sizes, are the first expert's."""
    return isinstance(value, Tensor) and value.is_floating_point()


def _are_equal(first: nn.Module, second: nn.Module) -> bool:
    pairs = list(zip(first.parameters(), second.parameters(), strict=True))
    if any(is_lazy(parameter) for parameter, _ in pairs):  # they are drawn later, each by itself
        return False
    return all(torch.equal(a, b) for a, b in pairs)


def _perturb(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in (p for p in module.parameters() if p.numel() > 1):
            parameter.add_(NOISE * parameter.std() * torch.randn_like(parameter))


def _weighted_sum(weights: Tensor, own: Tensor) -> Tensor:
    return torch.einsum("bn,bn...->b...", weights.to(own.dtype), own)
