"""The last block of a stage, where a task's own low-rank parts begin: what the trunk and the tasks make of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from timm.layers import Mlp
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mtl.architectures.low_rank import AdaptedLinear, LowRank, TaskLinear, TaskProjection


class TaskBlocks(nn.Module):
    """The features of a task: the last blocks, ``tails``, with low-rank parts of its own, and what the heads read."""

    def __init__(
        self, tails: Sequence[nn.Sequential], read: nn.Module, low_rank: Callable[[nn.Linear], LowRank]
    ) -> None:
        super().__init__()
        for tail in tails:
            _make_own(tail, low_rank)
        self.tails, self.read = nn.ModuleList(tails), read

    def forward(self, features: Sequence[Mapping[str, Any]]) -> Any:
        """What one backbone would return."""
        return self.read([_run(tail, **own) for tail, own in zip(self.tails, features, strict=True)])


def layers_of(tail: Any) -> Iterator[Any]:
    """The layers of a tail that have, or in a reader are, a task's own part."""
    block: Any = tail[0]
    whole = isinstance(block, AdaptedLinear | TaskLinear)
    yield from (block,) if whole else (block.attn.proj, block.mlp.fc1, block.mlp.fc2)


def _run(tail: Any, below: Tensor, read: Sequence[Tensor], products: Sequence[Tensor]) -> Tensor:
    layers = list(layers_of(tail))
    for layer, product in zip(layers, products, strict=True):
        layer.product = product
    for tensor in read:
        tail[0].attn.read = tensor
    x = tail(below)
    for layer in layers:  # or the features would live as long as the model
        layer.product = None
    for _ in read:
        tail[0].attn.read = None
    return x


def _make_own(tail: nn.Sequential, low_rank: Callable[[nn.Linear], LowRank]) -> None:
    """Turn a copy of a tail into a task's: what the trunk does before the first product is left out."""
    block: Any = tail[0]
    if isinstance(block, AdaptedLinear):
        tail[0] = TaskLinear(low_rank(block.linear))
        return
    block.norm1 = nn.Identity()
    block.attn = TaskProjection(TaskLinear(low_rank(block.attn.proj.linear)), block.attn.proj_drop)
    block.mlp.fc1 = TaskLinear(low_rank(block.mlp.fc1.linear))
    block.mlp.fc2 = TaskLinear(low_rank(block.mlp.fc2.linear))


def end_of(unit: nn.Sequential) -> int:
    """Where the last block of a stage is, whose layers become adapted ones, if they are not."""
    for number in reversed(range(len(unit))):
        block: Any = unit[number]
        if type(block) in (nn.Linear, nn.LazyLinear, AdaptedLinear):
            unit[number] = _adapted(block)
            return number
        if (
            isinstance(block, Block | SwinTransformerBlock)
            and isinstance(block.mlp, Mlp)
            and hasattr(block.attn, "proj")
        ):
            for module, name in ((block.attn, "proj"), (block.mlp, "fc1"), (block.mlp, "fc2")):
                setattr(module, name, _adapted(getattr(module, name)))
            return number
    raise ValueError(
        f"a stage of the backbone ends with {type(unit[-1]).__name__}, and a task's own parts are known in the blocks "
        "of timm's ViT and Swin and in linear layers of a torch.nn.Sequential; use task_rank=0."
    )


def _adapted(layer: nn.Module) -> AdaptedLinear:
    return layer if isinstance(layer, AdaptedLinear) else AdaptedLinear(layer)  # type: ignore[arg-type]
