"""Gates: how much each expert counts for a sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mtl.backbones.text import masked_mean


class Gate(nn.Module):
    """``softmax(W x + b)``: vectors ``[B, d]`` -> the weights of ``experts`` experts ``[B, n]``.

    ``d`` is found in the first forward pass. Source: Ma et al. 2018 (MMoE), equation 7, whose W has no b.
    """

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.linear = nn.LazyLinear(experts)
        self._last: Tensor | None = None  # weights [B, n]

    def forward(self, x: Tensor) -> Tensor:
        """The weights, which sum to one."""
        weights = self.linear(x).softmax(-1)
        self._last = weights.detach()
        return weights

    def sharing_parameters(self) -> Iterator[nn.Parameter]:
        """All of them."""
        return self.parameters()

    def logged(self) -> dict[str, Tensor]:
        """The mean weights of the last batch [n], and their mean entropy, in nats."""
        return {} if self._last is None else describe_weights(self._last)


def describe_weights(weights: Tensor) -> dict[str, Tensor]:
    """Of weights ``[B, n]``: ``gate``, their mean over the batch [n], and ``gate_entropy``, in nats: log n if equal."""
    return {"gate": weights.mean(0), "gate_entropy": torch.special.entr(weights).sum(-1).mean()}


def flattened(x: Any) -> Tensor:
    """``[B, ...]`` as vectors ``[B, d]``; ValueError for what is no tensor of floating point, as token ids are not."""
    return _checked(x).flatten(1)


def pooled(x: Any, last_axis_is_channels: bool = False) -> Tensor:
    """``[B, C, H, W]``, also ``[B, H, W, C]``, and ``[B, T, D]``, averaged over positions; ValueError as flattened.

    Of tokens with their mask, as of a text or of atoms, the padding is left out.
    """
    if isinstance(x, Mapping) and x.keys() >= {"tokens", "mask"}:
        return masked_mean(_checked(x["tokens"]), x["mask"])
    axis = 1 if _checked(x).dim() == 4 and not last_axis_is_channels else x.dim() - 1
    positions = [i for i in range(1, x.dim()) if i != axis]
    return x.mean(positions) if positions else x


def _checked(x: Any) -> Tensor:
    if isinstance(x, Tensor) and x.is_floating_point() and x.dim() > 1:
        return x
    found = f"{x.dtype} of shape {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
    raise ValueError(
        f"a gate reads one tensor [B, ...] of floating point, and not {found}; choose from_stage above 0 and "
        "gate_input=stem, so that it reads what a shared stem makes of the inputs."
    )
