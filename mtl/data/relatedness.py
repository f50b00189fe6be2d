"""Regression tasks whose relatedness is a number: the synthetic data of MMoE."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from torchmetrics import Metric

from mtl.data.metadata import digest
from mtl.errors import require, require_positive
from mtl.metrics import regression


class Relatedness:
    """Two tasks of one input: ``y_k = w_kᵀx + Σ_i sin(α_i w_kᵀx + β_i) + ε``, with ``cos(w_1, w_2) = correlation``.

    ``w_1 = u_1`` and ``w_2 = p u_1 + √(1 - p²) u_2`` with two orthogonal unit vectors, p the ``correlation``;
    x ~ N(0, I) of ``dimension`` numbers, ``sines`` terms with α_i = i and β_i = (i - 1)², and ε ~ N(0, ``noise``²).
    ``sizes`` are those of the splits for training, validation and test. All is drawn from ``seed``: another one has
    other vectors.

    Inputs: ``[B, dimension]``. Targets ``first`` and ``second``: ``[B, 1]``.

    Source: Ma et al. 2018, section 3.2, with c = 1. The paper gives no α, β and number of terms; these α and β are
    those of google-research's generator. ValueError for an argument that cannot be.
    """

    targets = ("first", "second")

    def __init__(
        self,
        batch_size: int = 64,
        correlation: float = 0.5,
        dimension: int = 100,
        sines: int = 4,
        noise: float = 0.1,
        sizes: Sequence[int] = (10_000, 2_000, 5_000),
        seed: int = 0,
    ) -> None:
        require_positive(batch_size=batch_size)
        require("correlation", correlation, "from -1 to 1", -1 <= correlation <= 1)
        require("dimension", dimension, "2 or more", dimension >= 2)
        require("sines", sines, "0 or more", sines >= 0)
        require("noise", noise, "0 or more", noise >= 0)
        require("sizes", list(sizes), "three numbers of 1 or more", len(sizes) == 3 and min(sizes) >= 1)
        self.batch_size, self.input_info = batch_size, {"in_features": dimension}
        draw = np.random.default_rng(seed)
        u1, u2 = np.linalg.qr(draw.standard_normal((dimension, 2)))[0].T
        self.directions = np.stack([u1, correlation * u1 + sqrt(1 - correlation**2) * u2])
        self.train, self.val, self.test = (self._samples(size, sines, noise, draw) for size in sizes)

    def metrics(self, target: str) -> dict[str, Metric]:
        """The absolute error and the root of the mean squared error."""
        require("target", target, f"one of {', '.join(self.targets)}", target in self.targets)
        return regression()

    def _samples(self, size: int, sines: int, noise: float, draw: np.random.Generator) -> Samples:
        x = draw.standard_normal((size, self.directions.shape[1]))
        along = x @ self.directions.T
        y = (
            along
            + sum(np.sin((i + 1) * along + i**2) for i in range(sines))
            + noise * draw.standard_normal(along.shape)
        )
        return Samples(x, y)


class Samples(Dataset):
    """One split: ``x`` is ``[N, dimension]``, ``y`` is ``[N, 2]``."""

    def __init__(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
        self._x, self._y = torch.from_numpy(x).float(), torch.from_numpy(y).float()
        self.digest = digest(self._x, self._y)

    def __len__(self) -> int:
        return len(self._x)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        inputs, targets = self.batch([index], epoch=0)
        return inputs[0], {name: target[0] for name, target in targets.items()}

    def batch(self, indices: Sequence[int], epoch: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The samples of ``indices``, the same in every epoch."""
        chosen = torch.as_tensor(indices)
        return self._x[chosen], {name: self._y[chosen, k, None] for k, name in enumerate(Relatedness.targets)}
