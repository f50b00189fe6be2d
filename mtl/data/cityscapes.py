"""Cityscapes as preprocessed by MTAN: segmentation and disparity of street scenes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torchmetrics import Metric

from mtl import metrics
from mtl.data import fixtures
from mtl.data.augment import Depth, Disparity, scale_crop_flip
from mtl.data.files import Read, as_classes, as_depth, split_samples, splits
from mtl.data.mtan import Arrays, Item
from mtl.errors import require_positive

IGNORED = -1
CLASSES = {
    7: ("flat", "construction", "object", "nature", "sky", "human", "vehicle"),
    19: (
        "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation",
        "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
    ),
}  # fmt: skip
SOURCE = (
    "the preprocessed Cityscapes (2975 and 500 samples of 128×256) is linked from github.com/lorenmt/mtan, and "
    "python -m mtl.data.cityscapes --make-fixture DIR writes a tiny one."
)


class Cityscapes:
    """Street scenes in the layout of MTAN: ``root/{train,val}/{image,label_7,label_19,depth}/<i>.npy``, channels last.

    The folder ``val`` is the test split. The last ``validation`` (a share) of the training samples is the validation
    split, the same for every seed (0.2 in Kurin et al.). With 0, the test split is also the validation split and all
    training samples are used, as in published results. ``classes`` is 7 or 19: the folder ``label_<classes>`` is read.

    ``augment``: training samples are scaled, cropped and flipped, see :class:`ScaleCrop`. The files' ``depth`` is a
    disparity, which grows when an image is enlarged. ``disparity=multiplied`` scales it so; ``disparity=inherited``
    divides it, as the published results do with code that was written for depth.

    Inputs: ``[B, 3, H, W]``, normalised as the backbone wants, which the papers' codes omit. Targets:
    ``segmentation`` ``[B, H, W]``, -1 if missing; ``depth`` ``[B, 1, H, W]``, 0 if missing.

    Raises ValueError as :class:`NYUv2` does. Source: Cordts et al. 2016; Liu et al. 2019 (MTAN); Kurin et al. 2022.
    """

    targets = ("segmentation", "depth")

    def __init__(
        self,
        root: str,
        batch_size: int = 8,
        validation: float = 0.2,
        augment: bool = True,
        disparity: str = "multiplied",
        classes: int = 7,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        require_positive(batch_size=batch_size)
        if classes not in CLASSES:
            raise ValueError(f"classes={classes} must be 7 or 19.")
        if disparity not in ("multiplied", "inherited"):
            raise ValueError(f"disparity={disparity} must be multiplied or inherited.")
        self.batch_size, self._classes, self._label = batch_size, classes, f"label_{classes}"
        self._disparity = Disparity if disparity == "multiplied" else Depth
        self.kinds = dict(segmentation="segmentation", depth="depth")
        self.class_names = {"segmentation": CLASSES[classes]}
        self._arrays = Arrays(root, ("image", self._label, "depth"), SOURCE, metadata)
        self.metadata, self.preprocess = self._arrays.metadata, self._arrays.preprocess
        self.normalize = self.preprocess.normalize
        self.input_info = {"in_channels": 3, "image_size": self._arrays.size}
        items = splits(self._arrays.train, self._arrays.val, validation)
        self.train, self.val, self.test = split_samples(
            items, self._read, self.preprocess, scale_crop_flip() if augment else None
        )

    def metrics(self, target: str) -> dict[str, Metric]:
        """The papers' metrics, by pixel as in LibMTL and by batch as in MTAN; see mtl.metrics."""
        if target == "segmentation":
            return metrics.segmentation(self._classes, IGNORED)
        return metrics.depth(batch_mean=True)

    def _read(self, item: Item) -> Read:
        arrays = self._arrays
        label, depth = arrays.read(item, self._label), arrays.read(item, "depth", 1)[..., 0]
        return arrays.image(item), {
            "segmentation": as_classes(arrays.file(item, self._label), label, self._classes, IGNORED),
            "depth": as_depth(arrays.file(item, "depth"), depth, self._disparity),
        }


def make_fixture(root: Path, height: int = 16, width: int = 32, train: int = 10, val: int = 3) -> None:
    """Write a tiny Cityscapes of random scenes; every target lacks the labels of a corner, each of another size."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for i in range(count):
            made = fixtures.scene(rng, height, width, 19)
            fine = fixtures.corner(made["classes"], IGNORED, 3, 3)
            arrays = {
                "image": made["image"] / 255,
                "label_19": fine.astype(np.float64),
                "label_7": np.where(fine == IGNORED, IGNORED, fine % 7).astype(np.float64),
                "depth": fixtures.corner(0.5 / made["depth"], 0, 4, 4)[..., None],
            }
            for kind, array in arrays.items():
                fixtures.save_array(root / split / kind / f"{i}.npy", array)


if __name__ == "__main__":
    fixtures.main(make_fixture)
