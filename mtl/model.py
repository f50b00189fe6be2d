"""The model: a shared backbone under one head a task."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree


class MultiTaskModel(nn.Module):
    """``heads[task](backbone(inputs))`` for every task.

    The backbone returns the shared features (a tensor, or a nesting of tuples, lists and dicts of tensors);
    each head is any module that maps them to a prediction. ``share`` names submodules that the heads have in common, as
    an unembedding: the first head's takes the place of the others'. ValueError where a head has no such submodule, or
    one of another kind or size.
    """

    def __init__(self, backbone: nn.Module, heads: Mapping[str, nn.Module], share: Sequence[str] = ()) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleDict(heads)
        for name in share:
            _share(heads, name)

    def forward(self, inputs: Any) -> dict[str, Any]:
        """The prediction of every task, by its name."""
        features = self.backbone(inputs)
        return {task: head(features) for task, head in self.heads.items()}

    def __deepcopy__(self, memo: dict[int, Any]) -> MultiTaskModel:
        """A copy, as of an average of the weights, also of heads that keep a tensor of a graph."""
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        memo.update(graph_tensors(self))
        copied.__setstate__(copy.deepcopy(self.__reduce_ex__(4)[2], memo))
        return copied

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """The backbone's parameters: the tasks share them."""
        return self.backbone.parameters()

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """The heads' parameters; one that several heads share comes once."""
        return self.heads.parameters()

    def is_compiled(self) -> bool:
        """Whether the backbone or a head is compiled."""
        return any(getattr(m, "_compiled_call_impl", None) is not None for m in (self.backbone, *self.heads.values()))


def graph_tensors(module: nn.Module) -> dict[int, Any]:
    """A memo for copy.deepcopy, which torch refuses for tensors of a graph: copies without it, by the tensors' ids.

    Such tensors are what a module keeps of its last forward pass, and the ``weight`` of torch's older weight_norm.
    """
    kept = [leaf for inner in module.modules() for leaf in pytree.tree_leaves(vars(inner)) if isinstance(leaf, Tensor)]
    return {id(tensor): tensor.detach().clone() for tensor in kept if tensor.grad_fn is not None}


def _share(heads: Mapping[str, nn.Module], name: str) -> None:
    own = {}
    for task, head in heads.items():
        submodules = dict(head.named_modules(remove_duplicate=False))
        del submodules[""]
        if name not in submodules:
            raise ValueError(f"share={name}: the head of {task} has only {', '.join(submodules) or 'no submodules'}.")
        own[task] = submodules[name]
    first, *others = own
    for task in others:
        if str(own[task]) != str(own[first]):
            a, b = (
                f"{type(m).__name__} of {sum(p.numel() for p in m.parameters())} numbers"
                for m in (own[first], own[task])
            )
            raise ValueError(f"share={name}: it is a {a} in {first}, but a {b} in {task}.")
        heads[task].set_submodule(name, own[first])
