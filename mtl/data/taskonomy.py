"""Taskonomy: indoor views with the five standard tasks of task grouping, from the original PNG files."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchmetrics import Metric
from torchvision import tv_tensors
from torchvision.transforms import v2

from mtl import metrics
from mtl.data import fixtures
from mtl.data.augment import Normals
from mtl.data.files import (
    CLASS_MODES,
    COLOUR,
    DEEP,
    Read,
    as_classes,
    check_shape,
    height_and_width,
    read_image,
    read_png,
    split_samples,
    splits,
)
from mtl.data.folder import find_root
from mtl.data.preprocess import ImagePreprocess
from mtl.errors import require_positive

log = logging.getLogger(__name__)

CLASSES, IGNORED = 18, 0
PER_METRE = 512  # units of depth
FARTHEST = 2**13  # largest known depth
# Each target is (raw - shift) / scale.
SCALES = {"depth_zbuffer": (1500, 1000), "keypoints2d": (50, 100), "edge_texture": (718, 1070)}
TRAIN, TEST = "train_models.txt", "val_models.txt"
SOURCE = (
    "the images are fetched with the tools at github.com/StanfordVL/taskonomy, the two lists of buildings are in "
    "github.com/tstandley/taskgrouping, and python -m mtl.data.taskonomy --make-fixture DIR writes a tiny one."
)

Item = tuple[str, str]  # a building, and point_<x>_view_<y>


class Taskonomy:
    """Views of buildings, under ``root/{rgb,<task>}/<building>/point_<x>_view_<y>_domain_<task>.png``.

    ``root/train_models.txt`` and ``root/val_models.txt`` list one building per line (481 and 51); those of the second
    are the test split. The last ``validation`` (a share) of the first list is the validation split: whole buildings,
    the same for every seed. With 0, the test split is also the validation split. Listed buildings without files, as in
    the smaller editions, are skipped and counted in the log. ``augment``: training samples are flipped with
    probability 1/2.

    Inputs: ``[B, 3, *image_size]``, normalised as the backbone wants. Targets of that size:
    ``segment_semantic`` (18 classes, 0 if missing), ``depth_zbuffer``, ``keypoints2d`` and ``edge_texture``
    (``[B, 1, …]``, shifted and scaled as in task grouping, NaN for unknown depth), ``normal`` (``[B, 3, …]``, the zero
    vector for unknown depth).

    Raises ValueError for missing files; when a sample is read, for a file that is unreadable, has another shape or a
    label out of range. The message names the file. Source: Zamir et al. 2018; Standley et al. 2020.
    """

    targets = ("segment_semantic", "depth_zbuffer", "normal", "keypoints2d", "edge_texture")

    def __init__(
        self,
        root: str,
        batch_size: int = 32,
        image_size: int | Sequence[int] = 256,
        validation: float = 0.1,
        augment: bool = True,
    ) -> None:
        require_positive(batch_size=batch_size)
        size = height_and_width(image_size)
        needed = dict.fromkeys(("rgb", *self.targets), "a folder a building")
        self._root = find_root(root, needed | {TRAIN: "buildings", TEST: "buildings"}, SOURCE)
        self.batch_size = batch_size
        self.kinds = dict.fromkeys(self.targets, "depth") | {"segment_semantic": "segmentation", "normal": "normals"}
        shift, scale = SCALES["depth_zbuffer"]
        self.scales = SCALES | {"depth_zbuffer": (shift / PER_METRE, scale / PER_METRE)}
        self.units = {"depth_zbuffer": "m"}
        self.input_info = {"in_channels": 3, "image_size": image_size if isinstance(image_size, int) else size}
        buildings = splits(self._buildings(TRAIN), self._buildings(TEST), validation)
        train, val, test = ([item for building in part for item in self._views(building)] for part in buildings)
        self.preprocess = ImagePreprocess(size)
        resize = self.preprocess.resize
        training = v2.Compose([resize, v2.RandomHorizontalFlip()]) if augment else resize
        self.normalize, self.metadata = self.preprocess.normalize, {"transform": {"resize": size}}
        items = train, val, test
        self.train, self.val, self.test = split_samples(items, self._read, self.preprocess, training, resize)

    def metrics(self, target: str) -> dict[str, Metric]:
        """Metrics besides the task's loss, which is the metric in the papers; see mtl.metrics."""
        if target == "segment_semantic":
            return metrics.segmentation(CLASSES, IGNORED)
        return metrics.normals() if target == "normal" else metrics.regression()

    def _buildings(self, file: str) -> list[str]:
        listed = sorted((self._root / file).read_text().split())
        there = [building for building in listed if (self._root / "rgb" / building).is_dir()]
        if not there:
            raise ValueError(
                f"{self._root / file} lists {len(listed)} buildings, but {self._root / 'rgb'} has none of them."
            )
        if len(there) < len(listed):
            log.info("%s: %d of %d buildings have files", file, len(there), len(listed))
        return there

    def _views(self, building: str) -> list[Item]:
        folder = self._root / "rgb" / building
        views = sorted(file.name.split("_domain_")[0] for file in folder.glob("*_domain_rgb.png"))
        if not views:
            raise ValueError(f"{folder} holds no point_<x>_view_<y>_domain_rgb.png.")
        return [(building, view) for view in views]

    def _file(self, item: Item, kind: str) -> Path:
        building, view = item
        file = self._root / kind / building / f"{view}_domain_{kind}.png"
        # The official files spell this one domain without an underscore.
        return file if file.exists() else file.with_name(file.name.replace("segment_semantic", "segmentsemantic"))

    def _read(self, item: Item) -> Read:
        image = read_image(self._file(item, "rgb"))
        size = image.shape[-2:]
        maps = {name: self._map(item, name, size) for name in SCALES}
        labels, normals = self._file(item, "segment_semantic"), self._file(item, "normal")
        classes, coded = read_png(labels, CLASS_MODES), read_png(normals, COLOUR)
        check_shape(labels, classes, size)
        check_shape(normals, coded, (*size, 3))
        known = ~np.isnan(maps["depth_zbuffer"][..., None])
        vectors = np.where(known, coded / np.float32(127.5) - 1, 0).astype(np.float32)
        return image, {
            "segment_semantic": as_classes(labels, classes, CLASSES, IGNORED),
            "depth_zbuffer": tv_tensors.Mask(
                torch.from_numpy(maps["depth_zbuffer"])[None]
            ),  # resized to the nearest pixel, so that NaN does not spread
            "normal": Normals(torch.from_numpy(vectors).permute(2, 0, 1)),
            **{n: tv_tensors.Image(torch.from_numpy(maps[n])[None]) for n in ("keypoints2d", "edge_texture")},
        }

    def _map(self, item: Item, kind: str, size: tuple[int, ...]) -> NDArray[Any]:
        file = self._file(item, kind)
        raw = read_png(file, DEEP)
        check_shape(file, raw, size)
        shift, scale = SCALES[kind]
        scaled = ((raw - np.float32(shift)) / np.float32(scale)).astype(np.float32)
        return np.where(raw < FARTHEST, scaled, np.float32(np.nan)) if kind == "depth_zbuffer" else scaled


def make_fixture(root: Path, side: int = 24, train: int = 4, test: int = 2, views: int = 3) -> None:
    """Write a tiny Taskonomy of random scenes, with ``views`` views per building and a corner of unknown depth."""
    rng = np.random.default_rng(0)
    names = {TRAIN: [f"house{i}" for i in range(train)], TEST: [f"hut{i}" for i in range(test)]}
    root.mkdir(parents=True, exist_ok=True)
    for file, buildings in names.items():
        (root / file).write_text("\n".join(buildings))
        for building in buildings:
            for view in range(views):
                made = fixtures.scene(rng, side, side, CLASSES)
                images = {
                    "rgb": made["image"],
                    "segment_semantic": made["classes"].astype(np.uint8),
                    "depth_zbuffer": fixtures.corner(512 * made["depth"], 2**16 - 1, 4, 4).astype(np.uint16),
                    "normal": (127.5 * (made["normals"] + 1)).round().astype(np.uint8),
                    "keypoints2d": (500 * fixtures.smooth(rng, side, side)).astype(np.uint16),
                    "edge_texture": (3000 * fixtures.smooth(rng, side, side)).astype(np.uint16),
                }
                for kind, array in images.items():
                    domain = kind.replace("segment_semantic", "segmentsemantic")
                    (root / kind / building).mkdir(parents=True, exist_ok=True)
                    name = f"point_{view}_view_0_domain_{domain}.png"
                    Image.fromarray(array).save(root / kind / building / name)


if __name__ == "__main__":
    fixtures.main(make_fixture)
