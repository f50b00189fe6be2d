"""Where GradientReducer writes the summed gradients."""

from unittest.mock import Mock

import torch
from torch import nn

from mtl.distributed.data_parallel import GradientReducer, dist


def test_a_summed_gradient_lies_in_memory_as_its_parameter_does(monkeypatch):
    """Also if this rank had no gradient: a fused optimizer reads parameter and gradient in the order of memory."""

    def twice(buffer, async_op):
        buffer.mul_(2).add_(1)
        return Mock()

    monkeypatch.setattr(dist, "all_reduce", twice)
    here, elsewhere = (
        nn.Parameter(torch.randn(4, 3, 2, 2).contiguous(memory_format=torch.channels_last)) for _ in range(2)
    )
    here.grad = torch.randn_like(here)
    expected = 2 * here.grad + 1
    GradientReducer([here, elsewhere]).wait()
    assert torch.equal(here.grad, expected) and torch.equal(elsewhere.grad, torch.ones_like(elsewhere))
    assert here.grad.stride() == elsewhere.grad.stride() == here.stride()
