from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatch
from functools import partial
from typing import Any

from torch import Tensor, nn

from mtl.architectures.last_block import TaskBlocks, end_of, layers_of
from mtl.architectures.low_rank import AdaptedLinear, LowRank
from mtl.architectures.stages import stages
from mtl.backbones import Text
from mtl.errors import suggestion

TRAINED = ("norm", "LayerNorm", "patch_embed", "relative_position_bias_table")  # LayerNorm: of texts


class LoRA:
    """MTLoRA: a frozen backbone with low-rank parts, which tasks share everywhere and have of their own in few layers.

    - Shared: ``W x + b + s · B A x`` in every linear layer that ``targets`` name, of rank ``shared_rank``. None: all.
    - Of task k: in the last block of each stage that heads read from, in the projection after the attention and in both
      layers of the MLP, ``W x + b + s · B_k A_k x_k``, of rank ``task_rank``, whatever ``targets`` name. x is the
      shared input and x_k the task's, which is x in the projection. In a torch.nn.Sequential the last block is its last
      linear layer. With ``task_rank=0`` there are none, and any module with linear layers will do.

    ``scale`` is s, used as it is; ``dropout`` is before each A. B begins at zero, so that all tasks begin with the
    network as it is: it should be pretrained. The rest is frozen, but for parameters that have one of ``trained`` in
    their name; None is norm, LayerNorm, patch_embed and relative_position_bias_table, as in the paper. ``targets`` and
    ``trained`` are parts of dotted names, and may have ``*`` and ``?``.

    The trunk ends at the frozen products of those last blocks; the products of low rank are all that a head costs.
    Norms behind them are a task's own copies, where the authors' code has one for all tasks and the trunk; dropout is
    drawn anew for each low-rank part.

    Source: Agiza et al. 2024, section 3. ValueError for ``targets`` and ``trained`` that name nothing, and, unless
    ``task_rank=0``, for texts, for a backbone without stages, or whose stages end with other blocks.
    """

    def __init__(
        self,
        backbone: Callable[[], nn.Module],
        tasks: Sequence[str],
        shared_rank: int = 64,
        task_rank: int = 4,
        scale: float = 4.0,
        dropout: float = 0.05,
        targets: Sequence[str] | None = None,
        trained: Sequence[str] | None = None,
    ) -> None:
        if min(shared_rank, task_rank) < 0 or not shared_rank + task_rank:
            raise ValueError(
                f"shared_rank={shared_rank} and task_rank={task_rank} must be 0 or more, and one of them above 0."
            )
        plain = backbone()
        _freeze(plain, trained)
        low_rank = partial(LowRank, scale=scale, dropout=dropout)
        _adapt(plain, targets, partial(low_rank, rank=shared_rank) if shared_rank else None)
        self.trunk, self._parts = plain, None
        if task_rank and isinstance(plain, Text):
            raise ValueError(
                f"task_rank={task_rank}: between the layers of backbone=text are texts with their mask, which a task's "
                "own parts do not take; use task_rank=0, with which the tasks share all low-rank parts."
            )
        self._own = partial(low_rank, rank=task_rank)
        if task_rank:
            self._parts = stages(plain)
            units = self._parts.units
            first = 0 if self._parts.reads_levels else len(units) - 1
            ends = [end_of(unit) for unit in units[first:]]
            self._tails = [unit[end:] for unit, end in zip(units[first:], ends, strict=True)]
            below = [unit[:end] for unit, end in zip(units[first:], ends, strict=True)]
            self.trunk = FrozenStages([*units[:first], *below], self._tails)

    def reader(self, task: str) -> nn.Module | None:
        """The low-rank parts of a task; None without any."""
        if self._parts is None:
            return None
        tails, read = copy.deepcopy((self._tails, self._parts.read))
        return TaskBlocks(tails, read, self._own)


class FrozenStages(nn.Module):
    """Inputs -> for each stage that heads read from, what the task's parts of its last block need.

    ``below``: all stages up to their ``tails``, which the last ones of them have: their last blocks. Of each tail the
    features have ``below``, its input, ``products``, of its frozen layers, and ``read``, the first one's input.
    """

    def __init__(self, below: Sequence[nn.Module], tails: Sequence[nn.Sequential]) -> None:
        super().__init__()
        list(layers_of(tails[-1]))[-1].low_rank = None  # nothing reads what comes after the last product
        self.below, self.tails = nn.ModuleList(below), nn.ModuleList([*tails[:-1], tails[-1][:1]])
        for tail in tails:
            for layer in layers_of(tail):
                layer.keeps = True

    def forward(self, inputs: Any) -> list[dict[str, Any]]:
        """The common features."""
        x, features = inputs, []
        tails: list[Any] = [None] * (len(self.below) - len(self.tails)) + list(self.tails)
        for stage, tail in zip(self.below, tails, strict=True):
            x = stage(x)
            if tail is not None:
                below, x = x, tail(x)
                features.append({"below": below, **_kept(tail, len(below))})
        return features


def _kept(tail: nn.Sequential, samples: int) -> dict[str, list[Tensor]]:
    seen = [layer.take() for layer in layers_of(tail)]
    read = [] if isinstance(tail[0], AdaptedLinear) else [seen[0][0]]  # else it is the tail's input
    return {"read": [_by_sample(x, samples) for x in read], "products": [_by_sample(p, samples) for _, p in seen]}


def _by_sample(x: Tensor, samples: int) -> Tensor:
    """``x`` with the samples on axis 0: Swin has windows there, those of a sample together."""
    return x if len(x) == samples else x.unflatten(0, (samples, -1))


def _adapt(plain: nn.Module, targets: Sequence[str] | None, low_rank: Callable[[nn.Linear], LowRank] | None) -> None:
    """Give the linear layers that ``targets`` name a part of low rank, if they are to have one."""
    found = {n: m for n, m in plain.named_modules() if n and type(m) in (nn.Linear, nn.LazyLinear)}
    if not found:
        raise ValueError(
            f"low-rank parts are of torch.nn.Linear layers, and {type(plain).__name__} has none; use a transformer, as "
            "backbone=vit_tiny."
        )
    for name in _named("targets", targets, found):
        plain.set_submodule(name, AdaptedLinear(found[name], None if low_rank is None else low_rank(found[name])))


def _freeze(plain: nn.Module, trained: Sequence[str] | None) -> None:
    """Freeze the parameters that ``trained`` does not name; of the paper's names a backbone may lack some."""
    names = dict(plain.named_parameters())
    if trained is None:
        kept = {name for name in names if any(part in name for part in TRAINED)}
    else:
        kept = set(_named("trained", trained, names))
    for name, parameter in names.items():
        parameter.requires_grad = name in kept  # requires_grad_() refuses lazy ones


def _named(key: str, patterns: Sequence[str] | None, names: Mapping[str, Any]) -> list[str]:
    """The names that have one of the patterns as a part, all of them for None; ValueError for one that none has."""
    for pattern in patterns or ():
        if not any(_has(name, pattern) for name in names):
            parts = sorted({part for name in names for part in name.split(".") if not part.isdigit()} or names)
            raise ValueError(f"{key}: {pattern} is in no name of the backbone's; {suggestion(pattern, parts)}.")
    return [name for name in names if patterns is None or any(_has(name, pattern) for pattern in patterns)]


def _has(name: str, pattern: str) -> bool:
    return fnmatch(name, f"*{pattern}*")
