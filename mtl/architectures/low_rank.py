"""Linear layers with a low-rank part: shared beside a frozen layer, or a task's own beside its product."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn


class LowRank(nn.Sequential):
    """``scale · B A dropout(x)``; A [r, in] begins as the weights of torch.nn.Linear, B [out, r] at zero.

    Source: Hu et al. 2022 (LoRA), with ``scale`` as it is and no division by r, as in MTLoRA's code.
    """

    def __init__(self, like: nn.Linear, rank: int, scale: float, dropout: float) -> None:
        lazy = isinstance(like, nn.LazyLinear)
        down = nn.LazyLinear(rank, bias=False) if lazy else nn.Linear(like.in_features, rank, bias=False)
        up = nn.Linear(rank, like.out_features, bias=False)
        nn.init.zeros_(up.weight)
        super().__init__(OrderedDict(dropout=nn.Dropout(dropout), A=down, B=up))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` -> ``[..., out]``."""
        return self.scale * super().forward(x)


class AdaptedLinear(nn.Module):
    """A frozen linear layer and, but for None, a low-rank part that the tasks share.

    With ``keeps`` it remembers its input and what the frozen layer made of it, until ``take`` is called.
    """

    def __init__(self, linear: nn.Linear, low_rank: LowRank | None = None) -> None:
        super().__init__()
        self.linear, self.low_rank, self.keeps = linear, low_rank, False
        self._seen: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """``W x + b + scale · B A x``."""
        product = self.linear(x)
        if self.keeps:
            self._seen = x, product
        return product if self.low_rank is None else product + self.low_rank(x)

    def take(self) -> tuple[Tensor, Tensor]:
        """The input and the frozen product of the last forward pass, which are forgotten here."""
        assert self._seen is not None
        seen, self._seen = self._seen, None
        return seen


class TaskLinear(nn.Module):
    """``product + scale · B_k A_k x``: a task's own low-rank part beside what a frozen layer made for all tasks."""

    def __init__(self, low_rank: LowRank) -> None:
        super().__init__()
        self.low_rank = low_rank
        self.product: Tensor | None = None  # of this forward pass

    def forward(self, x: Tensor) -> Tensor:
        """``x`` is the task's."""
        return self.product + self.low_rank(x)


class TaskProjection(nn.Module):
    """The projection after an attention that all tasks share; ``read`` is what it projects."""

    def __init__(self, proj: TaskLinear, drop: nn.Module) -> None:
        super().__init__()
        self.proj, self.drop = proj, drop
        self.read: Tensor | None = None  # in this forward pass

    def forward(self, *_: Any, **__: Any) -> Tensor:
        """In the attention's place, with its arguments, which the trunk has used."""
        assert self.read is not None
        return self.drop(self.proj(self.read))
