"""Batch normalisation over the samples of all ranks, on the CPU as well."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def synchronised(module: nn.Module, device: torch.device) -> nn.Module:
    """Convert every batch normalisation in a module, timm's as well, to a synchronised one; state_dict keys stay.

    On a GPU they become torch's SyncBatchNorm, which does not run on the CPU; there they become the classes below.
    """
    if device.type == "cuda":
        return convert_sync_batchnorm(module)
    for inner in module.modules():
        if isinstance(inner, BatchNormAct2d):
            inner.__class__ = SyncBatchNormAct  # the same attributes, another forward in training
        elif isinstance(inner, _BatchNorm):
            inner.__class__ = SyncBatchNorm
    return module


class SyncBatchNorm(_BatchNorm):
    """Normalises ``[B, C, ...]`` by mean and variance over all positions on all ranks; batch sizes may differ."""

    communicates = True

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x``; in training, update the running statistics as BatchNorm does."""
        return _normalise_over_ranks(self, x) if self.training else super().forward(x)

    def _check_input_dim(self, x: Tensor) -> None:
        pass


class SyncBatchNormAct(BatchNormAct2d):
    """timm's batch normalisation with its activation, synchronised."""

    communicates = True

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` and apply the activation."""
        return self.act(self.drop(_normalise_over_ranks(self, x))) if self.training else super().forward(x)


def _normalise_over_ranks(norm: Any, x: Tensor) -> Tensor:
    axes = [axis for axis in range(x.dim()) if axis != 1]
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    count = _AllReduce.apply(wide.new_tensor(x.numel() / x.shape[1]))
    mean = _AllReduce.apply(wide.sum(axes)) / count
    centred = wide - _per_channel(mean, x)
    variance = _AllReduce.apply(centred.square().sum(axes)) / count
    if norm.track_running_stats:
        with torch.no_grad():
            norm.num_batches_tracked.add_(1)
            momentum = 1 / norm.num_batches_tracked.item() if norm.momentum is None else norm.momentum
            norm.running_mean.lerp_(mean.to(norm.running_mean), momentum)
            norm.running_var.lerp_((variance * count / (count - 1)).to(norm.running_var), momentum)
    normalised = centred * _per_channel((variance + norm.eps).rsqrt(), x)
    if norm.affine:
        normalised = normalised * _per_channel(norm.weight, x) + _per_channel(norm.bias, x)
    return normalised.to(x.dtype)


class _AllReduce(torch.autograd.Function):
    """The sum over all ranks; the gradient is summed over them as well."""

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


def _per_channel(vector: Tensor, x: Tensor) -> Tensor:
    return vector.reshape(1, -1, *[1] * (x.dim() - 2))
