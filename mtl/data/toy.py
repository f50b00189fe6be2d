"""The two-task toy problem of CAGrad, Nash-MTL, FAMO and Aligned-MTL: two losses of one point (u, v), without data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchmetrics import Metric

# The starting points of Nash-MTL, FAMO and Aligned-MTL; CAGrad has three others.
STARTS = ((-8.5, 7.5), (0.0, 0.0), (9.0, 9.0), (-7.5, -0.5), (9.0, -1.0))
FLOOR = 5e-6  # smallest argument of the logarithm
EDGE = 7.0  # the Pareto front ends at the parabolas' centres, u = -7 and u = 7


class Toy:
    """A placeholder for data: one sample without content, and the starting point of the backbone ``Theta``.

    ``start`` is an index into ``starts``, or a point ``[u, v]``. The targets ``l1`` and ``l2`` are the numbers of the
    two losses and are never read.
    """

    targets = ("l1", "l2")
    batch_size = 1

    def __init__(self, start: int | Sequence[float] = 0, starts: Sequence[Sequence[float]] = STARTS) -> None:
        if isinstance(start, int):
            if not 0 <= start < len(starts):
                raise ValueError(f"start={start} must be from 0 to {len(starts) - 1}, or a point [u, v].")
            start = starts[start]
        if len(start) != 2:
            raise ValueError(f"start={list(start)} must be two numbers, [u, v].")
        self.input_info = {"start": [float(value) for value in start]}
        self.train = self.val = self.test = Placeholder()

    def metrics(self, target: str) -> dict[str, Metric]:
        """The point itself: ``u`` and ``v``."""
        return {"u": Column(1), "v": Column(2)}


class Placeholder(Dataset):
    """One sample: a zero, and for each task the number of its loss."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        inputs, targets = self.batch([index], epoch=0)
        return inputs[0], {name: target[0] for name, target in targets.items()}

    def batch(self, indices: Sequence[int], epoch: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The sample, repeated for every index."""
        count = len(indices)
        return torch.zeros(count, 1), {"l1": torch.full((count,), 1), "l2": torch.full((count,), 2)}


class ToyLoss(nn.Module):
    """Loss ``number`` (1 or 2) of the point, times ``scale``: ``[B, 2]`` -> ``[B, 3]``, the loss followed by u and v.

    With ``p = max(tanh(v / 2), 0)``, ``q = max(tanh(-v / 2), 0)``, the loss is ``scale (p A_i + q B_i)`` with ::

        A_1 = log max(|-(u + 7) / 2 + tanh v|, 5e-6) + 6      B_1 = ((u - 7)^2 + 0.1 (v + 8)^2) / 10 - 20
        A_2 = log max(|(3 - u) / 2 - tanh v + 2|, 5e-6) + 6   B_2 = ((u + 7)^2 + 0.1 (v + 8)^2) / 10 - 20

    Source: Liu et al. 2021 (CAGrad), toy.py of the official code, and the same function in the codes of Nash-MTL, FAMO
    and Aligned-MTL. The papers print A_2 with the opposite sign of its tanh.
    """

    def __init__(self, number: int, scale: float = 1.0) -> None:
        super().__init__()
        if number not in (1, 2):
            raise ValueError(f"number={number} must be 1 or 2.")
        if scale <= 0:
            raise ValueError(f"scale={scale} must be above 0.")
        self.number, self.scale = number, scale

    def forward(self, theta: Tensor) -> Tensor:
        """The loss, u and v."""
        u, v = theta.unbind(-1)
        half = torch.tanh(v / 2)
        # The published runs start in (0, 0), at the bound of both losses, with a torch whose clamp and relu had the
        # gradient 1 there. From torch 2.14 on that gradient is 0; where() keeps it at 1.
        p = torch.where(v >= 0, half, 0.0)
        q = torch.where(v <= 0, -half, 0.0)
        if self.number == 1:
            inside, centre = -(u + 7) / 2 + torch.tanh(v), 7.0
        else:
            inside, centre = (3 - u) / 2 - torch.tanh(v) + 2, -7.0
        distance = inside.abs()
        a = torch.where(distance >= FLOOR, distance, FLOOR).log() + 6
        b = ((u - centre) ** 2 + 0.1 * (v + 8) ** 2) / 10 - 20
        return torch.stack([self.scale * (p * a + q * b), u, v], -1)


class PassOn(nn.Module):
    """The mean of the prediction's first column: for a head that already returns a loss."""

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """A scalar; the target is not read."""
        return prediction[..., 0].mean()


class Column(Metric):
    """The mean of one column of the predictions ``[B, C]``; the targets are not read."""

    total: Tensor
    count: Tensor

    def __init__(self, column: int) -> None:
        super().__init__()
        self.column = column
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch."""
        self.total += prediction[:, self.column].sum()
        self.count += len(prediction)

    def compute(self) -> Tensor:
        """The mean so far."""
        return self.total / self.count


def front(u: NDArray[np.float64]) -> NDArray[np.float64]:
    """The v of the Pareto front at every u from -7 to 7, by Newton's method.

    For v < 0 every convex combination of the unscaled losses is a parabola in u, and every u is the minimum of one of
    them. So v(u) minimises ``q(v) ((49 - u^2 + 0.1 (v + 8)^2) / 10 - 20)`` over v. Scaling a loss does not change it.
    """
    v = np.full_like(u, -8.4)
    for _ in range(20):
        q = np.tanh(-v / 2)
        h, slope = (EDGE**2 - u**2 + 0.1 * (v + 8) ** 2) / 10 - 20, 0.02 * (v + 8)
        dq = -(1 - q**2) / 2
        first = dq * h + q * slope
        second = q * dq * h + 2 * dq * slope + 0.02 * q
        v = v - first / second
    return v


def on_front(u: float, v: float, tolerance: float = 0.25) -> bool:
    """Whether the point is within ``tolerance`` of the Pareto front in u and v; 0.25 in v are 0.003 in the losses."""
    nearest = np.clip([u], -EDGE, EDGE)
    return bool(abs(u - nearest[0]) <= tolerance and abs(v - front(nearest)[0]) <= tolerance)
