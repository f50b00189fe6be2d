"""Mixed precision: what autocast computes in, and float16's loss scale, which torch's GradScaler finds."""

from __future__ import annotations

import torch

from mtl.strategies import StepResult

DTYPES = {"32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
LEAST_SCALE = 1e-4  # a gradient that is not finite even with this one is not float16's fault


def loss_scale(scaler: torch.amp.GradScaler, device: torch.device) -> float:
    """What the gradients of the coming step are to be multiplied by, so that float16 can hold them."""
    return scaler.scale(torch.ones((), device=device)).item() if scaler.is_enabled() else 1.0


def unscale(scaler: torch.amp.GradScaler, optimizer: torch.optim.Optimizer) -> None:
    """Divide the scale out of the gradients, and adapt it: down after an overflow, up after 2000 steps without."""
    if scaler.is_enabled() and any(p.grad is not None for group in optimizer.param_groups for p in group["params"]):
        scaler.unscale_(optimizer)
        scaler.update()


def is_overflow(scale: float, result: StepResult) -> bool:
    """Whether a gradient that is not finite comes from the loss scale: the losses are finite, and it can be lowered.

    Then the step is left out, which is how the scale is found, and no error.
    """
    losses = list(result.losses.values())
    return scale > LEAST_SCALE and (not losses or bool(torch.stack(losses).isfinite().all()))
