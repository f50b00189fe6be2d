"""NYUv2 as preprocessed by MTAN: segmentation, depth and surface normals of indoor scenes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torchmetrics import Metric

from mtl import metrics
from mtl.data import fixtures
from mtl.data.augment import scale_crop_flip
from mtl.data.files import Read, as_classes, as_depth, as_normals, split_samples, splits
from mtl.data.mtan import Arrays, Item
from mtl.errors import require_positive

IGNORED = -1
CLASSES = (
    "bed", "books", "ceiling", "chair", "floor", "furniture", "objects", "picture", "sofa", "table", "television",
    "wall", "window",
)  # fmt: skip
SOURCE = (
    "the preprocessed NYUv2 (795 and 654 samples of 288×384) is linked from github.com/lorenmt/mtan, and "
    "python -m mtl.data.nyuv2 --make-fixture DIR writes a tiny one."
)


class NYUv2:
    """Indoor scenes in the layout of MTAN: ``root/{train,val}/{image,label,depth,normal}/<i>.npy``, channels last.

    The folder ``val`` is the test split. The last ``validation`` (a share) of the training samples is the validation
    split, the same for every seed. With 0, the test split is also the validation split and all training samples are
    used, as in published results. ``augment``: training samples are scaled, cropped and flipped, see
    :class:`ScaleCrop`.

    Inputs: ``[B, 3, H, W]``, normalised as the backbone wants, which the papers' codes omit. Targets:
    ``segmentation`` ``[B, H, W]``, 13 classes, -1 if missing; ``depth`` ``[B, 1, H, W]`` in metres, 0 if missing;
    ``normals`` ``[B, 3, H, W]``, the zero vector if missing.

    Raises ValueError for missing files; when a sample is read, for a file that is unreadable, has another shape or a
    value out of range. The message names the file. Source: Silberman et al. 2012; Liu et al. 2019 (MTAN).
    """

    targets = ("segmentation", "depth", "normals")

    def __init__(
        self,
        root: str,
        batch_size: int = 8,
        validation: float = 0.1,
        augment: bool = True,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        require_positive(batch_size=batch_size)
        self.batch_size = batch_size
        self.kinds = dict(segmentation="segmentation", depth="depth", normals="normals")
        self.class_names, self.units = {"segmentation": CLASSES}, {"depth": "m"}
        self._arrays = Arrays(root, ("image", "label", "depth", "normal"), SOURCE, metadata)
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
            return metrics.segmentation(len(CLASSES), IGNORED)
        return metrics.depth(batch_mean=True) if target == "depth" else metrics.normals(batch_mean=True)

    def _read(self, item: Item) -> Read:
        arrays = self._arrays
        label, depth, normal = (arrays.file(item, kind) for kind in ("label", "depth", "normal"))
        return arrays.image(item), {
            "segmentation": as_classes(label, arrays.read(item, "label"), len(CLASSES), IGNORED),
            "depth": as_depth(depth, arrays.read(item, "depth", 1)[..., 0]),
            "normals": as_normals(normal, arrays.read(item, "normal", 3)),
        }


def make_fixture(root: Path, height: int = 24, width: int = 32, train: int = 10, val: int = 3) -> None:
    """Write a tiny NYUv2 of random scenes; every target lacks the labels of a corner, each of another size."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for i in range(count):
            made = fixtures.scene(rng, height, width, len(CLASSES))
            arrays = {
                "image": made["image"] / 255,
                "label": fixtures.corner(made["classes"], IGNORED, 3, 3).astype(np.float64),
                "depth": fixtures.corner(made["depth"], 0, 4, 4)[..., None],
                "normal": fixtures.corner(made["normals"], 0, 5, 5),
            }
            for kind, array in arrays.items():
                fixtures.save_array(root / split / kind / f"{i}.npy", array)


if __name__ == "__main__":
    fixtures.main(make_fixture)
