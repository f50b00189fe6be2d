"""Fully sharded parameters: torch's FSDP2, with gradients that are summed and not averaged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils import _pytree as pytree

from mtl.distributed.collectives import get_world_size


def is_sharded(*tensors: Tensor) -> bool:
    """Whether any of the tensors is sharded over the ranks."""
    return any(isinstance(tensor, DTensor) for tensor in tensors)


def shard(*modules: nn.Module) -> None:
    """Shard the parameters of each module over all ranks with FSDP2; their gradients are summed over the ranks.

    A parameter that several of the modules hold stays whole on every rank: in FSDP2 it belongs to one module, and the
    others would run on its shard. Modules that are not trained stay whole as well.
    """
    held = Counter(p for module in modules for p in module.parameters())
    common = {p for p, count in held.items() if count > 1}
    for module in modules:
        own = [p for p in module.parameters() if p not in common]
        if any(p.requires_grad for p in own):
            mesh = init_device_mesh(own[0].device.type, (get_world_size(),))
            sharded: Any = fully_shard(module, mesh=mesh, ignored_params=common)
            sharded.set_gradient_divide_factor(1.0)
            if mesh.device_type == "cpu":
                sharded.set_force_sum_reduction_for_comms(True)  # gloo can only sum


@contextmanager
def unsharded(*modules: nn.Module) -> Iterator[None]:
    """Keep the modules' parameters unsharded in this context, so that forward passes need no communication.

    For inference only: no gradients are reduced here.
    """
    sharded: list[Any] = [module for module in modules if isinstance(module, FSDPModule)]
    for module in sharded:
        module.unshard()
    try:
        yield
    finally:
        for module in sharded:
            module.reshard()


def full_tensor(state: Any) -> Any:
    """A state dict, or any nesting of tensors, with every sharded tensor gathered on each rank."""
    return pytree.tree_map_only(DTensor, lambda tensor: tensor.full_tensor(), state)


def shard_like(value: Tensor, like: Tensor) -> Tensor:
    """This rank's shard of a full tensor, placed as ``like``; the full tensor if ``like`` is not sharded."""
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def shard_optimizer_state(optimizer: torch.optim.Optimizer) -> None:
    """Shard an optimizer's state, loaded as full tensors, with the placement of its parameters."""
    for p, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == p.shape and not isinstance(value, DTensor):
                state[name] = shard_like(value, p)


def load_full_state_dict(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a state dict of full tensors, also into a module whose parameters are sharded."""
    own = module.state_dict()
    module.load_state_dict({n: shard_like(value, own[n]) if n in own else value for n, value in state.items()})
