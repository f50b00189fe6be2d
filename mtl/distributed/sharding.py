"""Fully sharded parameters (FSDP2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils import _pytree as pytree

from mtl.distributed.collectives import (
    get_world_size,
)


def is_sharded(*tensors: Tensor) -> bool:
    """Whether each rank has only a part of one of these, under FSDP."""
    return any(isinstance(tensor, DTensor) for tensor in tensors)


def shard(module: nn.Module) -> None:
    """Keep a part of each parameter on each rank, the whole only while it is used (FSDP2); gradients are summed."""
    mesh = init_device_mesh(next(module.parameters()).device.type, (get_world_size(),))
    spread_module: Any = fully_shard(module, mesh=mesh)
    spread_module.set_gradient_divide_factor(1.0)
    if mesh.device_type == "cpu":
        spread_module.set_force_sum_reduction_for_comms(True)  # gloo has no other


@contextmanager
def unsharded(*modules: nn.Module) -> Iterator[None]:
    """Inside, each rank has all of what is spread: forward passes wait for nobody. No gradients are taken there."""
    spread_modules: list[Any] = [module for module in modules if isinstance(module, FSDPModule)]
    for module in spread_modules:
        module.unshard()
    try:
        yield
    finally:
        for module in spread_modules:
            module.reshard()


def full_tensor(state: Any) -> Any:
    """A state, or a nesting of them, with every tensor that is spread over the ranks put together on each of them."""
    return pytree.tree_map_only(DTensor, lambda tensor: tensor.full_tensor(), state)


def shard_like(value: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a whole tensor, spread as ``like`` is."""
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def shard_optimizer_state(optimizer: torch.optim.Optimizer) -> None:
    """Spread what an optimizer has loaded, whole, over the ranks as the parameters are."""
    for p, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == p.shape and not isinstance(value, DTensor):
                state[name] = shard_like(value, p)


def load_full_state_dict(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a state dict of full tensors, also into a module whose parameters are sharded."""
    own = module.state_dict()
    module.load_state_dict({n: shard_like(value, own[n]) if n in own else value for n, value in state.items()})
