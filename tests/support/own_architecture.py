"""An architecture of somebody's own, and some that keep no contract."""

import torch
from torch import nn


class Halves:
    """Each task reads a half of the features, and its own scale of the other one."""

    def __init__(self, backbone, tasks, start=0.5):
        self.trunk, self.start = backbone(), start

    def reader(self, task):
        return Scaled(self.start)


class Scaled(nn.Module):
    def __init__(self, start):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(start))

    def forward(self, features):
        first, second = features.chunk(2, -1)
        return torch.cat([first, self.scale * second], -1)


class WithoutTrunk:
    def __init__(self, backbone, tasks):
        pass

    def reader(self, task):
        return None


class WithoutReader:
    def __init__(self, backbone, tasks):
        self.trunk = backbone()


class WrongReader(WithoutReader):
    def reader(self, task):
        return "none"


class FailingReader(WithoutReader):
    def reader(self, task):
        raise KeyError(task)


class InPlace(WithoutReader):
    def reader(self, task):
        return nn.ReLU(inplace=True)


class Unfitting(WithoutReader):
    def reader(self, task):
        return nn.Linear(3, 3)
