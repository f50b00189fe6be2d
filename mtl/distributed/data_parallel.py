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

from mtl.distributed.collectives import (
    is_distributed,
)


class GradientReducer:
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


def data_parallel(trunk: nn.Module, device: torch.device, all_parameters_used: bool) -> nn.Module:
    """Wrap a trunk so that its gradients are summed over the ranks, bucket by bucket, while it runs backward."""
    wrapped = DistributedDataParallel(
        trunk,
        device_ids=[device] if device.type == "cuda" else None,
        find_unused_parameters=not all_parameters_used,
        gradient_as_bucket_view=True,
    )
    wrapped.register_comm_hook(None, _sum)
    return wrapped


def _sum(_: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """DDP's own way but for its division by the number of ranks: the losses are parts of the whole batch's mean."""
    return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda future: future.value()[0])


# DDP compares them with these classes, and would find their names.
_sum.__annotations__ |= {"bucket": dist.GradBucket, "return": torch.futures.Future[torch.Tensor]}


def all_parameters_used(trunk: nn.Module, inputs: Any) -> bool:
    """Whether the features of ``inputs``, a few samples, depend on all parameters of a trunk."""
    parameters = [p for p in trunk.parameters() if p.requires_grad]
    training = trunk.training
    features = [z for z in pytree.tree_leaves(trunk.eval()(inputs)) if isinstance(z, Tensor) and z.requires_grad]
    gradients = torch.autograd.grad(features, parameters, [torch.zeros_like(z) for z in features], allow_unused=True)
    trunk.train(training)  # not before: activations may have been computed again
    return None not in gradients


def broadcast_parameters(*modules: nn.Module) -> None:
    """Give every rank the parameters and buffers of rank 0, however they were initialised."""
    if is_distributed():
        for module in modules:
            for value in (*module.parameters(), *module.buffers()):
                dist.broadcast(value.detach(), src=0)


@contextmanager
def no_sync(trunk: nn.Module) -> Iterator[None]:
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


def broadcast_buffers(*modules: nn.Module) -> None:
    """Give every rank the buffers of rank 0, as the running statistics of normalisation layers."""
    if is_distributed():
        for module in modules:
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)
