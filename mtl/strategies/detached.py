from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mtl.engine.chunks import check_chunks
from mtl.engine.heads import run_heads
from mtl.engine.result import Measured, StepResult
from mtl.engine.shares import label_shares
from mtl.engine.weighting import DeferredGradients, Weights
from mtl.gradients.cut import Cut
from mtl.gradients.rows import Rows
from mtl.model import MultiTaskModel
from mtl.strategies.audit import Audit
from mtl.tasks import Task
from mtl.weightings import Weighting


class Detached(nn.Module):
    """Heads forward and backward one at a time on the detached features, then one backward of the trunk.

    The gradient is that of the sum of the scaled losses, while one head's graph is alive at a time: peak
    memory is O(V + d) and not O(K V + d) for K heads with V outputs. Source: Gloeckle et al. 2024, figure 2.

    A late weighting, which needs the losses of all tasks, costs one row a task and the heads' gradients held back
    until the last head has run; still no graph but one head's.

    ``token_chunks``: the same cut over the positions, T of features ``[B, T, D]`` or the rows of ``[B, C, H, W]``. A
    head runs forward and backward on one of so many slices after the other, so that the peak falls below that of one
    ordinary head. The gradient is the same for a head that treats every position by itself and a loss that is the
    mean over the labels, which the build of a run checks. A head whose first layers mix the positions can have them as
    ``mix`` and what comes after as ``read``, so that ``head(z) = read(mix(z))``: then only ``read`` runs on slices.

    ``space``: where the tasks' gradients are measured, ``features``, or summed over the batch, ``features_sum``.
    """

    def __init__(self, weighting: Weighting, token_chunks: int = 1, space: Measured = "features") -> None:
        super().__init__()
        check_chunks(token_chunks)
        self.weighting = weighting
        self.token_chunks = token_chunks
        self.space, self._audit = space, Audit(space)

    def step(
        self,
        model: MultiTaskModel,
        tasks: Sequence[Task],
        inputs: Any,
        targets: Mapping[str, Any],
        measure: bool = False,
        audit: bool = False,
    ) -> StepResult:
        """Leave the gradients of one batch in ``.grad``; see the package's docstring."""
        shard = label_shares(tasks, inputs, targets)
        names = list(shard.shares)
        weigh = Weights(self.weighting, shard, model.loss_scale)
        measure = (measure or audit or self.weighting.needs_gram) and bool(names)
        rows = Rows() if measure or weigh.late else None
        cut = Cut(model.features(inputs), rows, model.loss_scale)
        if rows is not None:
            rows.start(len(names), cut.leaves)
        held = DeferredGradients(model, shard.tasks) if weigh.late else None
        losses, weights = run_heads(model, shard, targets, cut, weigh.now, held, token_chunks=self.token_chunks)
        rows = cut.rows
        direction = None
        if rows is not None and held is not None:
            losses = shard.whole(losses)
            weights = weigh.after(losses)
            held.release(weights)
            rows.scale(list(weights.values()))
            direction = rows.combine(torch.ones(len(names)))
        sending = shard.send(model, None if weigh.late else losses)
        ones = torch.ones(len(names), dtype=torch.float64)
        gram = rows.whole_gram(self.space) if rows is not None and measure else None
        with self._audit.around(model, cut.trunk, rows if audit else None, names, ones) as found:
            cut.backward(direction)
        losses = sending.wait() or losses
        weigh.learn(losses)
        self.weighting.observe(losses, gram)
        return StepResult(losses, weights, gram, None if gram is None else self.space, found)
