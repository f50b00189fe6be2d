"""Joint augmentation: torchvision's transforms, applied to an image with its masks, depth and normals.

A target's type decides whether its values change: tv_tensors.Mask (classes) keeps them; Depth, Disparity and Normals
change. Random draws come from torch's global generator, which the loader seeds by seed, epoch and sample. So an
augmentation is the same with any number of loader processes and after a resume.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F


class Depth(tv_tensors.Mask):
    """Distances ``[1, H, W]``, divided by the scale when enlarged; resized to the nearest pixel, as classes are."""


class Disparity(tv_tensors.Mask):
    """Inverse distances ``[1, H, W]``, multiplied by the scale when enlarged."""


class Normals(tv_tensors.Image):
    """Surface normals ``[3, H, W]`` with x to the right: a horizontal flip negates x."""


@F.register_kernel(F.horizontal_flip, Normals)
def _flip_normals(normals: Normals) -> Normals:
    flipped = F.horizontal_flip_image(normals.as_subclass(Tensor))
    return Normals(flipped * torch.tensor([-1.0, 1.0, 1.0])[:, None, None])


class ScaleCrop(v2.Transform):
    """Enlarge by a factor drawn from ``scales``, then crop to the original size at a uniformly random position.

    Depth is divided by the factor, disparity is multiplied. Images and normals are resized bilinearly, all others to
    the nearest pixel, with pixel centres aligned; the official code of MTAN aligns the corners.

    Source: Liu et al. 2019 (MTAN), the augmentation of the official code.
    """

    def __init__(self, scales: Sequence[float] = (1.0, 1.2, 1.5)) -> None:
        super().__init__()
        if not scales or min(scales) < 1:
            raise ValueError(f"scales={list(scales)} must be a list of numbers, each 1 or more.")
        self.scales = list(scales)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the factor, and the rectangle to enlarge."""
        height, width = F.get_size(next(value for value in flat_inputs if isinstance(value, tv_tensors.Image)))
        scale = self.scales[int(torch.randint(len(self.scales), ()))]
        h, w = int(height / scale), int(width / scale)
        top, left = (int(torch.randint(space + 1, ())) for space in (height - h, width - w))
        return {"scale": scale, "size": [height, width], "box": (top, left, h, w)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Transform the image or one target; a target without pixels is unchanged."""
        if not isinstance(inpt, tv_tensors.Image | tv_tensors.Mask) or params["scale"] == 1:
            return inpt
        classes = isinstance(inpt, tv_tensors.Mask)
        mode = v2.InterpolationMode.NEAREST_EXACT if classes else v2.InterpolationMode.BILINEAR
        maps = inpt.as_subclass(Tensor).reshape(-1, *params["size"])
        maps = F.resized_crop_image(maps, *params["box"], params["size"], mode, antialias=False)
        if isinstance(inpt, Depth):
            maps = maps / params["scale"]
        if isinstance(inpt, Disparity):
            maps = maps * params["scale"]
        return tv_tensors.wrap(maps.reshape(inpt.shape), like=inpt)


def scale_crop_flip() -> v2.Transform:
    """The augmentation of MTAN and its successors: ScaleCrop, then a horizontal flip with probability 1/2."""
    return v2.Compose([ScaleCrop(), v2.RandomHorizontalFlip()])
