"""A backbone and data that draw from every random generator, so that a run which loses the state of one differs."""

import random
import time

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from mtl.data.digits import Digits


class Backbone(nn.Module):
    """Convolution, batch normalization and dropout, and a shift drawn by Python's and NumPy's generators.

    From training step ``fault_at`` on it sleeps for ``sleep`` seconds and allocates ``memory`` bytes.
    """

    def __init__(self, in_channels: int = 1, fault_at: int = 0, sleep: float = 0.0, memory: int = 0) -> None:
        super().__init__()
        self.fault_at, self.sleep, self.memory, self.calls = fault_at, sleep, memory, 0
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.AdaptiveAvgPool2d(2),
            nn.Flatten(), nn.Linear(16, 8),
        )  # fmt: skip

    def forward(self, x):
        shift = 0.1 * (random.random() + np.random.rand()) if self.training else 0.0
        self.calls += self.training
        if self.training and self.fault_at and self.calls >= self.fault_at:
            print("FAULT", flush=True)
            time.sleep(self.sleep)
            torch.empty(self.memory, dtype=torch.uint8)
        return self.layers(x) + shift


class Augmented(Dataset):
    """One split of the digits with noise from three generators, one sample at a time."""

    def __init__(self, split):
        self._split = split

    def __len__(self):
        return len(self._split)

    def __getitem__(self, index):
        image, targets = self._split[index]
        return image + 0.1 * torch.rand(image.shape) + 0.1 * random.random() + 0.1 * np.random.rand(), targets


class AugmentedDigits(Digits):
    """``token`` has no effect; it stands for the key of a data set that is downloaded."""

    def __init__(self, token: str = "", **arguments):
        super().__init__(**arguments)
        self.train, self.val, self.test = map(Augmented, (self.train, self.val, self.test))


class BreakingLoss(nn.CrossEntropyLoss):
    """Cross-entropy whose value or gradient is not finite in the training batches ``first`` to ``last``.

    A second call with the same batch gives the same result.
    """

    def __init__(self, kind: str, first: int, last: int) -> None:
        super().__init__()
        self.kind, self.first, self.last, self.calls = kind, first, last, 0
        self.spoilt = None

    def forward(self, prediction, target):
        loss = super().forward(prediction, target)
        if not prediction.requires_grad or len(target) <= 2:  # an evaluation, or the dry run
            return loss
        if target is not self.spoilt:
            self.calls += 1
            if not self.first <= self.calls <= self.last:
                return loss
        self.spoilt = target
        if self.kind == "gradient":
            return loss + 0 * (prediction.sum() * 0).sqrt()  # the root has an infinite slope at 0; times 0 it is NaN
        return loss * float(self.kind)


class BreakingBackbone(Backbone):
    """Its gradient is NaN in training step 3, although the gradients of the features are finite."""

    def forward(self, x):
        z = super().forward(x)
        broken = self.training and self.calls == 3
        return z + 0 * (self.layers[0].weight.sum() * 0).sqrt() if broken else z
