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

NOISE = 0.01  # of each weight's own deviation


def make_experts(backbone: Callable[[], nn.Module], count: int, key: str = "experts") -> nn.ModuleList:
    """``count`` backbones, of which none is a copy of another.

    ValueError for less than one, with ``key``, the name of the argument that counts them.
    """
    if count < 1:
        raise ValueError(f"{key}={count} must be 1 or more.")
    experts = [backbone() for _ in range(count)]
    perturb_copies(experts)
    return nn.ModuleList(experts)


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


def perturb_copies(experts: Sequence[nn.Module]) -> None:
    """Add noise to the experts that are copies of the first: equal experts have equal gradients, and stay equal.

    Backbones with pretrained weights are copies. The noise is normal, a hundredth of each parameter's own deviation.
    """
    first = list(experts[0].parameters())
    copies = [expert for expert in experts[1:] if _are_equal(first, list(expert.parameters()))]
    if copies:
        log.info(
            "%d of %d experts are copies of the first: noise of %g of each weight's deviation lets them part ways",
            len(copies), len(experts), NOISE,
        )  # fmt: skip
    with torch.no_grad():
        for parameter in (p for expert in copies for p in expert.parameters() if p.numel() > 1):
            parameter.add_(NOISE * parameter.std() * torch.randn_like(parameter))


def _are_equal(first: Sequence[nn.Parameter], second: Sequence[nn.Parameter]) -> bool:
    if not first or any(map(is_lazy, first)):  # lazy ones are drawn later, each by itself
        return False
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def _weighted_sum(weights: Tensor, own: Tensor) -> Tensor:
    return torch.einsum("bn,bn...->b...", weights.to(own.dtype), own)
