"""Numbers between the host and the device: on their way while the host goes on."""

from __future__ import annotations

import torch
from torch import Tensor


def widest(device: torch.device) -> torch.dtype:
    """float64; float32 on MPS, and on an XPU, that have none."""
    lacks = device.type == "mps" or (device.type == "xpu" and not torch.xpu.get_device_properties(device).has_fp64)
    return torch.float32 if lacks else torch.float64


def send(values: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A small tensor on ``device``. From the host: a blocking copy would wait for all work queued on the device.

    Not on MPS, which may read the memory of such a copy after it has been freed.
    """
    return values.to(device=device, dtype=dtype, non_blocking=device.type != "mps")


class HostCopy:
    """A copy of a tensor that is on its way to the host; ``read`` waits until it is there, and for nothing else."""

    def __init__(self, values: Tensor) -> None:
        self._values = values.to("cpu", non_blocking=values.device.type != "mps")  # of CUDA into pinned memory
        self._arrived = torch.Event(values.device) if values.is_cuda or values.is_xpu else None
        if self._arrived is not None:
            self._arrived.record()

    def read(self) -> list[float]:
        """The numbers."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._values.tolist()
