"""A backbone and data that draw from every generator there is, so that a resumed run which lost one is seen."""

import random
import time

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from mtl.data.digits import Digits


class Backbone(nn.Module):
    """Convolution, batch normalization and dropout, and a shift drawn by Python's and NumPy's generators.

    From training step ``sleep_from`` on it sleeps for ``sleep`` seconds.
    """

    def __init__(self, in_channels: int = 1, sleep: float = 0.0, sleep_from: int = 0) -> None:
        super().__init__()
        self.sleep, self.sleep_from, self.calls = sleep, sleep_from, 0
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.AdaptiveAvgPool2d(2),
            nn.Flatten(), nn.Linear(16, 8),
        )  # fmt: skip

    def forward(self, x):
        shift = 0.1 * (random.random() + np.random.rand()) if self.training else 0.0
        self.calls += self.training
        if self.sleep and self.training and self.calls >= self.sleep_from:
            print("ASLEEP", flush=True)
            time.sleep(self.sleep)
        return self.layers(x) + shift


class Augmented(Dataset):
    """One split of the digits, read sample by sample, with noise from three generators."""

    def __init__(self, split):
        self._split = split

    def __len__(self):
        return len(self._split)

    def __getitem__(self, index):
        image, targets = self._split[index]
        return image + 0.1 * torch.rand(image.shape) + 0.1 * random.random() + 0.1 * np.random.rand(), targets


class AugmentedDigits(Digits):
    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.train, self.val, self.test = map(Augmented, (self.train, self.val, self.test))
