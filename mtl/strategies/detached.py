from __future__ import annotations

from mtl.engine.heads import Heads
from mtl.engine.result import Measured
from mtl.engine.step import Step
from mtl.strategies.base import Strategy
from mtl.weightings import Weighting


class Detached(Strategy):
    """Heads forward and backward one at a time on the detached features, then one backward of the trunk.

    The gradient is that of the sum of the weighted losses, while one head's graph is alive at a time: peak memory is
    O(V + d) and not O(K V + d) for K heads with V outputs. Source: Gloeckle et al. 2024, figure 2.

    A weighting that needs the losses of all tasks costs one row a task, and the heads' gradients are kept back until
    the last head has run; still no graph but one head's.

    ``token_chunks``: the same cut over the positions, T of features ``[B, T, D]`` or the rows of ``[B, C, H, W]``: the
    peak falls below that of one ordinary head. The gradient is the same for a head that treats every position by itself
    and a loss that is the mean over the labels; the build of a run checks both. A head whose first layers mix the
    positions may have them as ``mix`` and the others as ``read``, so that ``head(z) = read(mix(z))``.

    Promises: the gradient of the sum of the losses, with one head's graph in memory at a time.

    Fails for: losses of different sizes: the longest gradients decide.
    """

    def __init__(self, weighting: Weighting, token_chunks: int = 1, space: Measured = "features") -> None:
        super().__init__(weighting, space, token_chunks)

    def backward(self, step: Step) -> None:
        """Gloeckle et al. 2024, figure 2."""
        cut = step.cut()  # z = backbone(x); d = z.detach(): the heads' gradients stop here
        heads = Heads(step, cut)
        for head in heads:  # forward AND backward, one head at a time:
            head.backward()  # loss(head(d), y).backward(); its graph is freed before the next head runs
        heads.release()  # to the optimizer, and to the other ranks
        step.measure_conflict(cut)  # only in a step that is asked for it
        cut.backward()  # z.backward(d.grad): one backward of the trunk, whatever the number of heads
