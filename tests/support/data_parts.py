"""A trunk for dense heads that is quick to train."""

from torch import nn


class Trunk(nn.Module):
    """Two feature maps. Its dropout draws from the global generator, as augmentation does."""

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        self.fine = nn.Sequential(nn.Conv2d(in_channels, 8, 3, 2, 1), nn.ReLU(), nn.Dropout(0.1))
        self.coarse = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())

    def forward(self, x):
        fine = self.fine(x)
        return [fine, self.coarse(fine)]
