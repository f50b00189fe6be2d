from collections.abc import Sequence

import torch
from torch import Tensor

from mtl.errors import require
from mtl.gradients.transfer import send
from mtl.rules.rows import RowRule, effective_weights
from mtl.rules.rule import Array, Random, new_generator


class GradDrop(Random, RowRule):
    """In every element a random sign is kept, and the task gradients of the other sign are dropped.

    For each element let ``P = (1 + sum_k g_k / sum_k |g_k|) / 2`` and U be uniform on [0, 1). The mask M keeps positive
    ``g_k`` if P > U, and negative ones if P < U. The direction is ``sum_k (l_k + (1 - l_k) M_k) g_k`` with l the
    ``leak``: one number for all tasks, or one per task; 0 is the paper's default, 1 gives the sum. A zero gradient adds
    nothing.

    U comes from the rule's own generator on the CPU and is drawn for the whole batch. So it is the same on every
    device, and every rank has the right part of it.

    Promises: in every element all that is left has one sign, so that nothing cancels.

    Fails for: a task as a whole, for which nothing holds: what is dropped is drawn, which is noise in every step.

    Source: Chen et al. 2020, algorithm 1, for gradients without a batch axis: for activations, the paper multiplies by
    their sign and sums over the batch first. LibMTL has one leak for all tasks.
    """

    elementwise = True

    def __init__(self, leak: float | Sequence[float] = 0.0, seed: int = 0) -> None:
        super().__init__()
        leaks = [leak] if isinstance(leak, int | float) else list(leak)
        require("leak", leak, "from 0 to 1", bool(leaks) and all(0 <= value <= 1 for value in leaks))
        self.leaks = leaks
        self.generator = new_generator(seed)
        self._offsets: Sequence[Sequence[tuple[int, int, int]]] | None = None

    def combine(
        self,
        rows: list[Tensor],
        gram: Tensor,
        losses: Tensor | None = None,
        present: Sequence[int] | None = None,
        offsets: Sequence[Sequence[tuple[int, int, int]]] | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """As :meth:`RowRule.combine`. ``offsets`` (Rows.offsets_in_batch) locates ``rows`` of a part of the batch."""
        self._offsets = offsets
        return super().combine(rows, gram, losses, present)

    def aggregate(self, rows: list[Tensor], gram: Array, present: Sequence[int] | None) -> tuple[list[Tensor], Tensor]:
        """Return the masked sum, and the share of each task gradient in it."""
        leak = self._leak(len(gram), present)
        factors, direction = [], []
        for number, block in enumerate(rows):
            wide = block.to(torch.promote_types(block.dtype, torch.float32))
            size = wide.abs().sum(0)
            purity = 0.5 * (1 + wide.sum(0) / size.where(size > 0, 1))
            draw = send(self._draw(number, block.shape[1]), wide.device, wide.dtype)
            mask = ((wide > 0) & (purity > draw)) | ((wide < 0) & (purity < draw))
            share = send(leak, wide.device, wide.dtype)[:, None]
            factors.append(share + (1 - share) * mask)
            direction.append((factors[-1] * wide).sum(0))
        return direction, effective_weights(rows, factors)

    def _draw(self, block: int, length: int) -> Tensor:
        offsets = [(0, length, length)] if self._offsets is None else self._offsets[block]
        draws = [torch.rand(whole, generator=self.generator)[start:stop] for start, stop, whole in offsets]
        return torch.cat(draws)

    def _leak(self, count: int, present: Sequence[int] | None) -> Tensor:
        if len(self.leaks) == 1:
            return torch.full((count,), float(self.leaks[0]))
        tasks = range(count) if present is None else present
        if max(tasks, default=-1) >= len(self.leaks) or (present is None and count != len(self.leaks)):
            raise ValueError(f"leak={self.leaks} must be one number, or one for each task.")
        return torch.tensor([float(self.leaks[task]) for task in tasks])
