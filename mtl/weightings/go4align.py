from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mtl.errors import require
from mtl.weightings.task_weighting import TaskWeighting


class GO4Align(TaskWeighting):
    """GO4Align: tasks of similar risk form groups, each with one weight, so that their progress is aligned.

    With the sums over the tasks in the batch, and q at first uniform::

        q_k <- q_k exp(-beta L_k) / sum_i q_i exp(-beta L_i)    the losses so far
        gamma_k = q_k sum_i L_i / L_k                           the indicator: large for a small loss
        w_k = the mean of gamma over the group of k

    where the ``groups`` are the k-means clusters of gamma. ``beta`` at 0 is the inverse of the loss by groups; with as
    many groups as tasks, or more, w = gamma. The paper chooses both on validation.

    The clusters are the exact minimum, by dynamic programming over the sorted values: clusters of numbers are
    intervals. No random start, no iteration, and no wait for the device, which scikit-learn's KMeans would bring.

    Scale: ``sum_k gamma_k L_k = sum_k L_k``, that of equal weighting. This is the published code's; equation 5 has the
    mean in place of the sum, K times less. A task that is absent keeps its q; those in the batch keep the sum of
    theirs. A loss at or below ``epsilon`` is in no group and has weight 0.

    Source: Shen et al. 2024, "GO4Align: Group Optimization for Multi-Task Alignment", equations 3 and 5 to 7, with
    beta of the published code, whose default is a single group.
    """

    needs_all_losses = True
    log_q: Tensor

    def __init__(self, tasks: Sequence[str], groups: int = 2, beta: float = 1e-4, epsilon: float = 1e-8) -> None:
        super().__init__(tasks)
        require("groups", groups, "1 or more", groups >= 1)
        require("beta", beta, "0 or more", 0 <= beta < math.inf)
        require("epsilon", epsilon, "above 0", 0 < epsilon < math.inf)
        self.groups, self.beta, self.epsilon = min(groups, len(tasks)), beta, epsilon
        self.register_buffer("log_q", torch.full((len(tasks),), -math.log(len(tasks))))

    def weights(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the means of the indicators over the groups, in which this step's losses count already."""
        values = self.vector(losses)
        known = values.isfinite() & (values > self.epsilon)
        q = torch.where(known, self._moved(values), -torch.inf).softmax(0)
        indicators = torch.where(known, q * torch.where(known, values, 0).sum() / values, 0)
        return self.by_task(means_of_clusters(indicators, known, self.groups), losses)

    def out_of_domain(self, task: str, loss: float) -> str | None:
        """A loss at or below ``epsilon``."""
        if loss > self.epsilon:
            return None
        return "a loss at or below 0 has no inverse, so the task has weight 0 and is not trained"

    def observe(self, losses: Mapping[str, Tensor], gram: Tensor | None) -> None:
        """Add the losses of a step to q."""
        if losses:
            self.log_q.copy_(self._moved(self.vector(losses)))

    def _moved(self, losses: Tensor) -> Tensor:
        """The logarithm of q after a step with these losses."""
        known = losses.isfinite()
        moved = self.log_q - self.beta * losses
        before, after = (torch.where(known, q, -torch.inf).logsumexp(0) for q in (self.log_q, moved))
        return torch.where(known, moved + (before - after), self.log_q)


def means_of_clusters(values: Tensor, known: Tensor, count: int) -> Tensor:
    """The mean of each value's cluster, of at most ``count`` whose squared distances from their means are least.

    ``values`` [K]; those that are not ``known`` are in no cluster, and 0 in the result. It takes K^3 numbers.
    """
    order = torch.where(known, values, torch.inf).argsort(stable=True)
    sorted_values, counts = torch.where(known, values, 0)[order], known[order]
    place = torch.arange(len(values), device=values.device)
    first, last = place[:, None, None], place[None, :, None]
    inside = counts & (first <= place) & (place <= last)  # [first, last, place]
    distances = (sorted_values - _means(sorted_values, inside)[..., None]).square()
    costs = torch.where(inside, distances, 0).sum(2).where(place[:, None] <= place, torch.inf)
    best, starts = costs[0], list[Tensor]()  # of the values up to each place, in one cluster
    for _ in range(count - 1):
        best, start = (torch.cat([best.new_zeros(1), best[:-1]])[:, None] + costs).min(0)
        starts.append(start)
    end, cluster = place[-1:], torch.zeros_like(place)
    for start in reversed(starts):
        begin = start[end]
        cluster += place >= begin
        end = (begin - 1).clamp(min=0)
    means = _means(sorted_values, counts & (cluster[:, None] == cluster))
    return torch.where(known, means[order.argsort()], 0)


def _means(values: Tensor, inside: Tensor) -> Tensor:
    """The mean of the values ``[K]`` at which ``inside`` ``[..., K]`` holds; 0 where it never does."""
    return torch.where(inside, values, 0).sum(-1) / inside.sum(-1).clamp(min=1)
