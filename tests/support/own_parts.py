"""Heads whose output is no logits, a loss that takes any of them, and a metric that keeps what it sees."""

import torch
from torch import nn
from torch.utils.data import Dataset
from torchmetrics import Metric


class Both(nn.Module):
    """A head with two outputs, as a tuple, a dict or an embedding alone."""

    def __init__(self, in_features, kind):
        super().__init__()
        self.kind, self.embed, self.out = kind, nn.Linear(in_features, 6), nn.Linear(6, 10)

    def forward(self, z):
        embedding = self.embed(z)
        return {"tuple": (self.out(embedding), embedding), "embedding": embedding,
                "dict": {"logits": self.out(embedding), "embedding": embedding}}[self.kind]  # fmt: skip


class Norm(nn.Module):
    """A loss of any output."""

    def forward(self, prediction, target):
        parts = prediction.values() if isinstance(prediction, dict) else prediction
        return sum(part.square().mean() for part in parts)


class Seen(Metric):
    """Keeps what it is given."""

    higher_is_better = False

    def __init__(self):
        super().__init__()
        self.batches = []

    def update(self, prediction, target):
        self.batches.append((prediction, target))

    def compute(self):
        return torch.tensor(float(len(self.batches)))


class OwnImages(Dataset):
    """Images of one grey, with a class and a number."""

    def __len__(self):
        return 20

    def __getitem__(self, index):
        return torch.full((3, 32, 32), index / 20), {"colour": index % 3, "size": torch.tensor([index / 20])}
