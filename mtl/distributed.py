"""What more than one process needs: torch.distributed itself. In a process that is alone, everything here does nothing.

Every process (rank) has a shard of each batch and its own copy of the model; gradients are summed, never averaged, for
a task's loss is the mean over the labels of the whole batch (mtl/strategies/shard.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils import _pytree as pytree

TIMEOUT = timedelta(minutes=10)  # how long a rank waits for another one that is stuck


def active() -> bool:
    """Whether this process is one of several."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """Which of the processes this is; 0 is the one that writes."""
    return dist.get_rank() if active() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if active() else 1


@contextmanager
def joined() -> Iterator[None]:
    """Meet the other processes that torchrun has started; nothing for a process that is alone, or has met them."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or dist.is_initialized():
        yield
        return
    # The Gram matrix and what is said between ranks is on the CPU, whatever the model is on.
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT)
    yield
    # Not after an error: while the others are still connected they cannot fail, and be taken for the first that did.
    dist.destroy_process_group()


def total(values: Tensor) -> Tensor:
    """The sum of a tensor over all ranks, in place."""
    if active():
        dist.all_reduce(values)
    return values


def total_of(tensors: Sequence[Tensor]) -> None:
    """The sums of some tensors over all ranks, in place, in one buffer a type."""
    for kind in dict.fromkeys(tensor.dtype for tensor in tensors) if active() else ():
        group = [tensor for tensor in tensors if tensor.dtype == kind]
        buffer = total(torch.cat([tensor.flatten() for tensor in group]))
        pieces = buffer.split([tensor.numel() for tensor in group])
        torch._foreach_copy_(group, [piece.view_as(t) for piece, t in zip(pieces, group, strict=True)])


def is_sharded(*tensors: Tensor) -> bool:
    """Whether each rank has only a part of one of these, under FSDP."""
    return any(isinstance(tensor, DTensor) for tensor in tensors)


def wait_for_all() -> None:
    """Go on when every rank is here."""
    any_rank(False)


def any_rank(answer: bool) -> bool:
    """Whether it is so on one rank at least."""
    return bool(total(torch.tensor(float(answer)))) if active() else answer


def everyones(value: Any) -> list[Any]:
    """The value that each rank has, in the ranks' order."""
    values = [value]
    if active():
        values *= world_size()
        dist.all_gather_object(values, value)
    return values


def from_first(value: Any) -> Any:
    """What rank 0 has."""
    values = [value]
    if active():
        dist.broadcast_object_list(values, src=0)
    return values[0]


class GradientSum:
    """The sum over the ranks of some parameters' gradients and of a few numbers, started here and fetched by wait().

    All of one type and device travel in one buffer, in an order that does not depend on which of them have a gradient
    here: a rank whose batch has no label of a task sends zeros. What is on the way may not be touched before.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], numbers: Sequence[Tensor] = ()) -> None:
        kinds: dict[tuple, list[nn.Parameter]] = {}
        kinds |= {(number.dtype, number.device): [] for number in numbers[:1]}
        for p in parameters:
            kinds.setdefault((p.dtype, p.device), []).append(p)
        self._buffers = []
        for place, group in enumerate(kinds.values()):
            parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in group]
            parts += [number.detach() for number in numbers] if not place else []
            buffer = torch.cat([part.flatten() for part in parts])
            self._buffers.append((buffer, group, dist.all_reduce(buffer, async_op=True)))

    def wait(self) -> list[Tensor]:
        """Wait for the sums, put the gradients in place, and return the numbers."""
        numbers: list[Tensor] = []
        for buffer, group, work in self._buffers:
            work.wait()
            lengths = [p.numel() for p in group]
            *gradients, rest = buffer.split([*lengths, buffer.numel() - sum(lengths)])
            for p, gradient in zip(group, gradients, strict=True):
                if p.grad is None:
                    p.grad = torch.empty_like(p).copy_(gradient.view_as(p))  # in its order in memory, as autograd's
                else:
                    p.grad.copy_(gradient.view_as(p))
            numbers += rest.unbind()
        return numbers


def parallel(trunk: nn.Module, device: torch.device, all_used: bool) -> nn.Module:
    """Wrap a trunk so that its gradients are summed over the ranks, bucket by bucket, while it runs backward."""
    wrapped = DistributedDataParallel(
        trunk,
        device_ids=[device] if device.type == "cuda" else None,
        find_unused_parameters=not all_used,
        gradient_as_bucket_view=True,
    )
    wrapped.register_comm_hook(None, _sum)
    return wrapped


def _sum(_: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """DDP's own way but for its division by the number of ranks: the losses are parts of the whole batch's mean."""
    return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda future: future.value()[0])


# DDP compares them with these classes, and would find their names.
_sum.__annotations__ |= {"bucket": dist.GradBucket, "return": torch.futures.Future[torch.Tensor]}


def all_used(trunk: nn.Module, inputs: Any) -> bool:
    """Whether the features of ``inputs``, a few samples, depend on all parameters of a trunk."""
    parameters = [p for p in trunk.parameters() if p.requires_grad]
    training = trunk.training
    features = [z for z in pytree.tree_leaves(trunk.eval()(inputs)) if isinstance(z, Tensor) and z.requires_grad]
    gradients = torch.autograd.grad(features, parameters, [torch.zeros_like(z) for z in features], allow_unused=True)
    trunk.train(training)  # not before: activations may have been computed again
    return None not in gradients


def spread(module: nn.Module) -> None:
    """Keep a part of each parameter on each rank, the whole only while it is used (FSDP2); gradients are summed."""
    mesh = init_device_mesh(next(module.parameters()).device.type, (world_size(),))
    spread_module: Any = fully_shard(module, mesh=mesh)
    spread_module.set_gradient_divide_factor(1.0)
    if mesh.device_type == "cpu":
        spread_module.set_force_sum_reduction_for_comms(True)  # gloo has no other


@contextmanager
def gathered(*modules: nn.Module) -> Iterator[None]:
    """Inside, each rank has all of what is spread: forward passes wait for nobody. No gradients are taken there."""
    spread_modules: list[Any] = [module for module in modules if isinstance(module, FSDPModule)]
    for module in spread_modules:
        module.unshard()
    try:
        yield
    finally:
        for module in spread_modules:
            module.reshard()


def whole(state: Any) -> Any:
    """A state, or a nesting of them, with every tensor that is spread over the ranks put together on each of them."""
    return pytree.tree_map_only(DTensor, lambda tensor: tensor.full_tensor(), state)


def spread_like(value: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a whole tensor, spread as ``like`` is."""
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def spread_state(optimizer: torch.optim.Optimizer) -> None:
    """Spread what an optimizer has loaded, whole, over the ranks as the parameters are."""
    for p, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == p.shape and not isinstance(value, DTensor):
                state[name] = spread_like(value, p)


def same_start(*modules: nn.Module) -> None:
    """Give every rank the parameters and buffers of rank 0, however they were initialised."""
    if active():
        for module in modules:
            for value in (*module.parameters(), *module.buffers()):
                dist.broadcast(value.detach(), src=0)


@contextmanager
def unsynchronised(trunk: nn.Module) -> Iterator[None]:
    """Inside, the trunk's gradients stay on their ranks: more batches of the same step will come."""
    spread_modules: list[Any] = [trunk] if isinstance(trunk, FSDPModule) else []
    for module in spread_modules:
        module.set_requires_gradient_sync(False)
    try:
        with trunk.no_sync() if isinstance(trunk, DistributedDataParallel) else nullcontext():
            yield
    finally:
        for module in spread_modules:
            module.set_requires_gradient_sync(True)


def same_buffers(*modules: nn.Module) -> None:
    """Give every rank the buffers of rank 0, as the running statistics of normalisation layers."""
    if active():
        for module in modules:
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)


def same_everywhere(name: str, value: str) -> None:
    """RuntimeError where ``value`` (a digest) is not the same on every rank."""
    values = everyones(value)
    odd = ", ".join(str(number) for number, other in enumerate(values) if other != values[0])
    if odd:
        raise RuntimeError(f"{name} is not the same on every rank: that of rank {odd} differs from rank 0's.")
