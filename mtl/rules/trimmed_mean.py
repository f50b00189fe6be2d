from collections.abc import Sequence

import torch
from torch import Tensor

from mtl.errors import require
from mtl.rules.rows import RowRule, effective_weights
from mtl.rules.rule import Array


class TrimmedMean(RowRule):
    """In every element, drop the ``trim`` largest and the ``trim`` smallest values and average the others.

    With fewer than ``2 trim + 1`` tasks, as many are dropped as leave one value or two: the median. A zero gradient is
    a row like any other.

    Promises: every element lies within the values that are kept, so that no outlier decides.

    Fails for: few tasks: of three it is the median of each element, and what one task alone wants is dropped.

    Source: Yin et al. 2018, definition 2, with a number of values in place of their share.
    """

    elementwise = True

    def __init__(self, trim: int = 1) -> None:
        super().__init__()
        require("trim", trim, "0 or more", trim >= 0)
        self.trim = trim

    def aggregate(self, rows: list[Tensor], gram: Array, present: Sequence[int] | None) -> tuple[list[Tensor], Tensor]:
        """Return the trimmed mean, and the share of each task gradient in it."""
        count = len(gram)
        trim = min(self.trim, (count - 1) // 2)
        direction, factors = [], []
        for block in rows:
            wide = block.to(torch.promote_types(block.dtype, torch.float32))
            values, order = wide.sort(0)
            direction.append(values[trim : count - trim].mean(0))
            kept = torch.zeros_like(wide).scatter_(0, order[trim : count - trim], 1 / (count - 2 * trim))
            factors.append(kept)
        return direction, effective_weights(rows, factors)
