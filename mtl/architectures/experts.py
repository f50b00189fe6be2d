"""Experts: backbones of one kind on the same inputs, and the mixture of what they return."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

log = logging.getLogger(__name__)

NOISE = 0.01  # of each parameter's own deviation


def make_experts(backbone: Callable[[], nn.Module], count: int, key: str = "experts") -> nn.ModuleList:
    """``count`` backbones; ValueError for less than one, with ``key``, the name of the argument that counts them."""
    if count < 1:
        raise ValueError(f"{key}={count} must be 1 or more.")
    return nn.ModuleList(backbone() for _ in range(count))


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
