from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mtl.architectures.experts import distinct, make_experts, mix
from mtl.architectures.gate import describe_weights
from mtl.architectures.mmoe import StackedExperts


class DSelectK:
    """MMoE with a gate that selects at most ``k`` of the experts, and can be learned by gradients.

    Each expert has a code of m bits, for 2^m ``experts``. Selector i has m numbers z^i, and picks expert e by

        r(z^i)_e = prod_b (s(z^i_b) if bit b of e is set else 1 - s(z^i_b)),
        s(t) = 0 below -gamma / 2, 1 above gamma / 2, and -2 t^3 / gamma^3 + 3 t / (2 gamma) + 1/2 between.

    The weights of the experts are ``q = sum_i softmax(w)_i r(z^i)``. z and w are linear in what the gates of MMoE
    read, or with ``static`` parameters; ``from_stage`` and ``gate_input`` are MMoE's.

    ``entropy``: the factor of the penalty ``-sum_i sum_e r log(r + 1e-6)``, which makes every selector decide. It is
    the mean over the batch, where the official code has the sum.

    Source: Hazimeh et al. 2021, sections 3 and 4. Other numbers of experts are refused: the penalty for a code without
    an expert is infinite where a selector has decided for it.
    """

    def __init__(
        self,
        backbone: Callable[[], nn.Module],
        tasks: Sequence[str],
        experts: int = 4,
        k: int = 2,
        gamma: float = 1.0,
        entropy: float = 0.0,
        static: bool = False,
        from_stage: int | None = None,
        gate_input: Literal["input", "stem"] | None = None,
    ) -> None:
        if experts < 2 or experts & (experts - 1):
            raise ValueError(f"experts={experts} must be a power of two, as 2, 4 or 8: every code is one expert's.")
        if not 1 <= k <= experts:
            raise ValueError(f"k={k} must be from 1 to experts={experts}.")
        if gamma <= 0 or entropy < 0:
            raise ValueError(f"gamma={gamma} must be above 0, and entropy={entropy} must be 0 or more.")
        self.trunk = StackedExperts(*make_experts(distinct(backbone), experts, from_stage), gate_input)
        self._selectors = lambda: Selectors(experts, k, gamma, entropy, static)

    def reader(self, task: str) -> nn.Module:
        """The selectors of a task, and its mixture."""
        return self._selectors()


class Selectors(nn.Module):
    """The features that a task's ``k`` selectors make of stacked experts."""

    codes: Tensor

    def __init__(self, experts: int, k: int, gamma: float, entropy: float, static: bool) -> None:
        super().__init__()
        bits = experts.bit_length() - 1
        self.k, self.gamma, self.entropy = k, gamma, entropy
        codes = torch.arange(experts)[:, None] >> torch.arange(bits) & 1
        self.register_buffer("codes", codes.bool(), persistent=False)  # [n, m]
        made = Constant if static else UniformLinear
        self.z, self.w = made(k * bits, gamma / 100), made(k, 0.05)  # the official code's initial values
        self._penalty: Tensor | None = None
        self._last: Tensor | None = None  # weights [B, n]

    def forward(self, features: Mapping[str, Any]) -> Any:
        """What one backbone would return."""
        x = features["gate"]
        s = smooth_step(self.z(x).unflatten(-1, (self.k, 1, -1)), self.gamma)  # [B, k, 1, m]
        r = torch.where(self.codes, s, 1 - s).prod(-1)  # [B, k, n]
        weights = torch.einsum("bk,bkn->bn", self.w(x).softmax(-1), r)
        self._last = weights.detach()
        if self.entropy:
            self._penalty = -self.entropy * (r * torch.log(r + 1e-6)).sum((-2, -1)).mean()
        return mix(weights, features["experts"])

    def penalty(self) -> Tensor | None:
        """The penalty of the last forward pass, once; None without one."""
        penalty, self._penalty = self._penalty, None
        return penalty

    def sharing_parameters(self) -> Iterator[nn.Parameter]:
        """All of them."""
        return self.parameters()

    def logged(self) -> dict[str, Tensor]:
        """Of the last batch: the mean weights [n], their entropy, and how many experts a sample has on average."""
        if self._last is None:
            return {}
        return describe_weights(self._last) | {"selected": (self._last > 0).sum(-1).float().mean()}


class UniformLinear(nn.LazyLinear):
    """A linear layer whose weights and biases are drawn from U(-bound, bound)."""

    def __init__(self, out_features: int, bound: float) -> None:
        self.bound = bound
        super().__init__(out_features)

    def reset_parameters(self) -> None:
        """Draw them, once the width is known."""
        if not self.has_uninitialized_params():
            for parameter in self.parameters():
                nn.init.uniform_(parameter, -self.bound, self.bound)


class Constant(nn.Module):
    """The same parameters ``[out_features]`` for every sample."""

    def __init__(self, out_features: int, bound: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.empty(out_features).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, out_features]``."""
        return self.value.expand(len(x), -1)


def smooth_step(t: Tensor, gamma: float) -> Tensor:
    """A cubic from 0 at ``-gamma / 2`` to 1 at ``gamma / 2``, constant outside; its derivative is continuous."""
    t = (t / gamma).clamp(-0.5, 0.5)
    return -2 * t**3 + 1.5 * t + 0.5
