"""A small network for small images."""

from __future__ import annotations

from torch import nn

from mtl.errors import require_positive


class ConvNet(nn.Sequential):
    """Three convolutions of ``width``, 2 and 4 times ``width`` channels: images ``[B, C, H, W]`` -> ``[B, 4 width]``.

    Each is 3×3, with batch normalisation and ReLU; the first two halve the resolution, and the last map is averaged.
    About 90 width² parameters: a trunk for small images, whose size one number sets.
    """

    def __init__(self, width: int, in_channels: int = 3) -> None:
        require_positive(width=width)
        layers, channels = list[nn.Module](), in_channels
        for factor, stride in ((1, 2), (2, 2), (4, 1)):
            convolution = nn.Conv2d(channels, factor * width, 3, stride, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(factor * width), nn.ReLU()]
            channels = factor * width
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
