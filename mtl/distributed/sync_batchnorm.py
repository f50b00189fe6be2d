"""Batch normalisation over the whole batch where several processes have parts of it, on the CPU as well."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def synchronised(module: nn.Module, device: torch.device) -> nn.Module:
    """The module with every batch normalisation over all processes, timm's as well; the names in its state stay.

    On a GPU these are torch's SyncBatchNorm, which refuses to run on the CPU; there they are those below.
    """
    if device.type == "cuda":
        return convert_sync_batchnorm(module)
    for inner in module.modules():
        if isinstance(inner, BatchNormAct2d):
            inner.__class__ = SyncBatchNormAct  # the same attributes: only what it computes in training differs
        elif isinstance(inner, _BatchNorm):
            inner.__class__ = SyncBatchNorm
    return module


class SyncBatchNorm(_BatchNorm):
    """Normalises ``[B, C, ...]`` by the mean and variance of all positions on all ranks, however many each has."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise; in training the running statistics move as BatchNorm's do."""
        return _over_ranks(self, x) if self.training else super().forward(x)

    def _check_input_dim(self, x: Tensor) -> None:
        pass


class SyncBatchNormAct(BatchNormAct2d):
    """timm's, with its activation."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise and activate."""
        return self.act(self.drop(_over_ranks(self, x))) if self.training else super().forward(x)


def waits(module: nn.Module) -> bool:
    """Whether a pass through the module, forward or backward, waits for the same one on the other ranks."""
    return any(isinstance(inner, nn.SyncBatchNorm | SyncBatchNorm | SyncBatchNormAct) for inner in module.modules())


def _over_ranks(norm: Any, x: Tensor) -> Tensor:
    axes = [axis for axis in range(x.dim()) if axis != 1]
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    count = _Total.apply(wide.new_tensor(x.numel() / x.shape[1]))
    mean = _Total.apply(wide.sum(axes)) / count
    centred = wide - _across(mean, x)
    variance = _Total.apply(centred.square().sum(axes)) / count
    if norm.track_running_stats:
        with torch.no_grad():
            norm.num_batches_tracked.add_(1)
            share = 1 / norm.num_batches_tracked.item() if norm.momentum is None else norm.momentum
            norm.running_mean.lerp_(mean.to(norm.running_mean), share)
            norm.running_var.lerp_((variance * count / (count - 1)).to(norm.running_var), share)
    normal = centred * _across((variance + norm.eps).rsqrt(), x)
    if norm.affine:
        normal = normal * _across(norm.weight, x) + _across(norm.bias, x)
    return normal.to(x.dtype)


class _Total(torch.autograd.Function):
    """The sum over the ranks; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        values = values.clone()
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


def _across(vector: Tensor, x: Tensor) -> Tensor:
    return vector.reshape(1, -1, *[1] * (x.dim() - 2))
