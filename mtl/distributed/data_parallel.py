"""DistributedDataParallel for the trunk, and one all_reduce for the gradients of the heads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from torch.utils import _pytree as pytree

from mtl.distributed.collectives import is_distributed


class GradientReducer:
    """Starts to sum gradients and a few numbers over all ranks; ``wait`` returns when the sums are in place.

    There is one buffer and one all_reduce per dtype and device. The layout is the same on every rank: a parameter
    without a gradient on this rank, as where its batch has no label of a task, contributes zeros. Do not use the
    gradients before ``wait`` has returned.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], numbers: Sequence[Tensor] = ()) -> None:
        groups: dict[tuple, list[nn.Parameter]] = {}  # by dtype and device; the numbers travel with the first
        groups |= {(number.dtype, number.device): [] for number in numbers[:1]}
        for p in parameters:
            groups.setdefault((p.dtype, p.device), []).append(p)
        self._buffers = []
        for index, group in enumerate(groups.values()):
            parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in group]
            parts += [number.detach() for number in numbers] if index == 0 else []
            buffer = torch.cat([part.flatten() for part in parts])
            self._buffers.append((buffer, group, dist.all_reduce(buffer, async_op=True)))

    def wait(self) -> list[Tensor]:
        """Wait for the sums, write the gradients to ``.grad``, and return the numbers."""
        numbers: list[Tensor] = []
        for buffer, group, work in self._buffers:
            work.wait()
            lengths = [p.numel() for p in group]
            *gradients, rest = buffer.split([*lengths, buffer.numel() - sum(lengths)])
            for p, gradient in zip(group, gradients, strict=True):
                if p.grad is None:
                    p.grad = torch.empty_like(p).copy_(gradient.view_as(p))  # with the parameter's strides, as autograd
                else:
                    p.grad.copy_(gradient.view_as(p))
            numbers += rest.unbind()
        return numbers


def data_parallel(trunk: nn.Module, device: torch.device, all_parameters_used: bool) -> nn.Module:
    """Wrap a trunk in DistributedDataParallel, with gradients that are summed over the ranks and not averaged."""
    wrapped = DistributedDataParallel(
        trunk,
        device_ids=[device] if device.type == "cuda" else None,
        find_unused_parameters=not all_parameters_used,
        gradient_as_bucket_view=True,
    )
    wrapped.register_comm_hook(None, _sum_hook)
    return wrapped


def _sum_hook(_: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """DDP's own all_reduce without its division by the world size: the ranks' losses add up to the batch's mean."""
    return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda future: future.value()[0])


# DDP compares a hook's annotations with these classes; here they are strings (from __future__ import annotations).
_sum_hook.__annotations__ |= {"bucket": dist.GradBucket, "return": torch.futures.Future[torch.Tensor]}


def all_parameters_used(trunk: nn.Module, inputs: Any) -> bool:
    """Whether a trunk's features depend on all of its parameters, found with a few samples ``inputs``."""
    parameters = [p for p in trunk.parameters() if p.requires_grad]
    training = trunk.training
    features = [z for z in pytree.tree_leaves(trunk.eval()(inputs)) if isinstance(z, Tensor) and z.requires_grad]
    gradients = torch.autograd.grad(features, parameters, [torch.zeros_like(z) for z in features], allow_unused=True)
    trunk.train(training)  # only now: the backward pass may recompute activations
    return None not in gradients


def broadcast_parameters(*modules: nn.Module) -> None:
    """Copy the parameters and buffers of rank 0 to every rank."""
    if is_distributed():
        for module in modules:
            for value in (*module.parameters(), *module.buffers()):
                dist.broadcast(value.detach(), src=0)


@contextmanager
def no_sync(trunk: nn.Module) -> Iterator[None]:
    """Do not reduce the trunk's gradients in this context: the same step accumulates further batches."""
    sharded: list[Any] = [trunk] if isinstance(trunk, FSDPModule) else []
    for module in sharded:
        module.set_requires_gradient_sync(False)
    try:
        with trunk.no_sync() if isinstance(trunk, DistributedDataParallel) else nullcontext():
            yield
    finally:
        for module in sharded:
            module.set_requires_gradient_sync(True)


def broadcast_buffers(*modules: nn.Module) -> None:
    """Copy the buffers of rank 0, such as the running statistics of batch normalisation, to every rank."""
    if is_distributed():
        for module in modules:
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)
