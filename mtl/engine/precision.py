"""Mixed precision: the type that autocast computes in, and float16's loss scale, which torch's GradScaler adapts."""

from __future__ import annotations

import torch

from mtl.engine.result import StepResult

DTYPES = {"32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
MIN_SCALE = 1e-4  # a gradient that is not finite even at this scale is not float16's fault


class Precision:
    """``dtype``: of autocast, None for the inputs' own; ``scale``: the factor of every gradient in the coming step."""

    def __init__(self, dtype: torch.dtype | None = None, scaler: torch.amp.GradScaler | None = None) -> None:
        self.dtype, self.scaler, self.scale = dtype, scaler, 1.0

    def update_scale(self, device: torch.device) -> None:
        """Take the scale of the coming step from the GradScaler."""
        if self.scaler is not None:
            self.scale = self.scaler.scale(torch.ones((), device=device)).item()

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the scale out of the gradients, and adapt it: down after an overflow, up after 2000 steps without."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if self.scaler is not None and any(p.grad is not None for p in parameters):
            self.scaler.unscale_(optimizer)
            self.scaler.update()

    def is_overflow(self, result: StepResult) -> bool:
        """Whether a gradient that is not finite comes from the scale: the losses are finite, and it can be lowered.

        Such a step is left out, which is how the scale is found; it is no error.
        """
        losses = list(result.losses.values())
        finite = not losses or bool(torch.stack(losses).isfinite().all())
        return self.scaler is not None and self.scale > MIN_SCALE and finite
