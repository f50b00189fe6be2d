"""NYUv2 as MTAN preprocessed it: segmentation, depth and surface normals of indoor scenes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torchmetrics import Metric

from mtl import metrics
from mtl.data import fixtures
from mtl.data.augment import scale_crop_flip
from mtl.data.files import Read, Samples, as_classes, as_depth, as_normals, check_batch_size, splits
from mtl.data.mtan import Arrays, Item

CLASSES, IGNORED = 13, -1
SOURCE = (
    "the preprocessed NYUv2 (795 and 654 samples of 288×384) is linked from github.com/lorenmt/mtan, and "
    "python -m mtl.data.nyuv2 --make-fixture DIR writes a tiny one."
)


class NYUv2:
    """Indoor scenes in the layout of MTAN: ``root/{train,val}/{image,label,depth,normal}/<i>.npy``, channels last.

    The folder ``val`` is the test split. The last ``validation`` of the training samples are the validation split, the
    same for every seed; with 0 that is the test split, and all samples are trained on, as in the published results.
    ``augment``: training samples are scaled, cropped and flipped, see ScaleCrop.

    Inputs: ``[B, 3, H, W]``, normalised by the statistics of ImageNet, which the papers' codes do not do. Targets:
    ``segmentation`` ``[B, H, W]``, 13 classes, -1 for none; ``depth`` ``[B, 1, H, W]`` in metres, 0 for none;
    ``normals`` ``[B, 3, H, W]``, the zero vector for none.

    Raises ValueError for files that are missing, and where a sample is read for one that is broken, of another shape or
    with a value out of range; each names the file. Source: Silberman et al. 2012; Liu et al. 2019 (MTAN).
    """

    targets = ("segmentation", "depth", "normals")

    def __init__(self, root: str, batch_size: int = 8, validation: float = 0.1, augment: bool = True) -> None:
        check_batch_size(batch_size)
        self.batch_size = batch_size
        self.kinds = dict(segmentation="segmentation", depth="depth", normals="normals")
        self._arrays = Arrays(root, ("image", "label", "depth", "normal"), SOURCE)
        self.input_info = {"in_channels": 3, "image_size": self._arrays.size}
        train, val, test = splits(self._arrays.train, self._arrays.val, validation)
        self.train = Samples(train, self._read, scale_crop_flip() if augment else None)
        self.val, self.test = Samples(val, self._read), Samples(test, self._read)

    def metrics(self, target: str) -> dict[str, Metric]:
        """Those of the papers, by pixel as in LibMTL and by batch as in MTAN, see mtl.metrics."""
        if target == "segmentation":
            return metrics.segmentation(CLASSES, IGNORED)
        return metrics.depth(batch_mean=True) if target == "depth" else metrics.normals(batch_mean=True)

    def _read(self, item: Item) -> Read:
        arrays = self._arrays
        label, depth, normal = (arrays.file(item, kind) for kind in ("label", "depth", "normal"))
        return arrays.image(item), {
            "segmentation": as_classes(label, arrays.read(item, "label"), CLASSES, IGNORED),
            "depth": as_depth(depth, arrays.read(item, "depth", 1)[..., 0]),
            "normals": as_normals(normal, arrays.read(item, "normal", 3)),
        }


def make_fixture(root: Path, height: int = 24, width: int = 32, train: int = 10, val: int = 3) -> None:
    """A tiny NYUv2 of random scenes, in which every target lacks a corner of its own size."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for i in range(count):
            made = fixtures.scene(rng, height, width, CLASSES)
            arrays = {
                "image": made["image"] / 255,
                "label": fixtures.corner(made["classes"], IGNORED, 3, 3).astype(np.float64),
                "depth": fixtures.corner(made["depth"], 0, 4, 4)[..., None],
                "normal": fixtures.corner(made["normals"], 0, 5, 5),
            }
            for kind, array in arrays.items():
                (root / split / kind).mkdir(parents=True, exist_ok=True)
                np.save(root / split / kind / f"{i}.npy", array)


if __name__ == "__main__":
    fixtures.main(make_fixture)
