"""PASCAL-Context for multi-task learning: segmentation, human parts, normals, saliency and edges of photographs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn.functional import pad
from torchmetrics import Metric
from torchvision import tv_tensors
from torchvision.transforms import v2

from mtl import metrics
from mtl.data import fixtures
from mtl.data.augment import Normals
from mtl.data.files import (
    CLASS_MODES,
    COLOUR,
    GREY,
    Read,
    as_classes,
    check_shape,
    read_image,
    read_png,
    split_samples,
    splits,
)
from mtl.data.folder import errors_named_by, find_root
from mtl.data.preprocess import ImagePreprocess
from mtl.data.scenes import borders
from mtl.errors import require_positive

IGNORED = 255
NAMES = {
    "segmentation": (
        "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
        "dining table", "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv monitor",
    ),
    "human_parts": ("background", "head", "torso", "upper arms", "lower arms", "upper legs", "lower legs"),
}  # fmt: skip
CLASSES = {target: len(names) for target, names in NAMES.items()}
PERSON = 15  # the class index of persons in VOC
# Head, torso, upper arms, lower arms, upper legs, lower legs; 0 is everything else.
PARTS = dict.fromkeys(["hair", "head", "lear", "lebrow", "leye", "mouth", "nose", "rear", "rebrow", "reye"], 1) | {
    "neck": 2, "torso": 2, "luarm": 3, "ruarm": 3, "llarm": 4, "lhand": 4, "rlarm": 4, "rhand": 4,
    "luleg": 5, "ruleg": 5, "llleg": 6, "lfoot": 6, "rlleg": 6, "rfoot": 6,
}  # fmt: skip
# Classes of PASCAL-Context that NYU also has. The normals come from a network for NYU and are valid only there.
KNOWN_NORMALS = (
    3, 4, 6, 9, 10, 11, 13, 15, 17, 18, 22, 23, 29, 30, 33, 34, 36, 37, 38, 39, 41, 43, 46, 49, 50, 51, 53, 55, 56, 59,
    61, 62, 65, 66, 68, 69, 72, 73, 78, 83, 84, 85, 87, 88, 95, 96, 101, 104, 105, 107, 111, 113, 115, 122, 124, 135,
    141, 142, 143, 146, 150, 154, 157, 158, 159, 165, 172, 174, 181, 183, 184, 191, 193, 195, 197, 199, 202, 213, 215,
    216, 219, 220, 223, 225, 228, 230, 232, 233, 238, 239, 242, 243, 246, 250, 251, 252, 255, 260, 261, 263, 269, 272,
    273, 275, 281, 283, 284, 285, 286, 287, 288, 290, 291, 292, 293, 295, 304, 307, 309, 310, 314, 315, 319, 323, 329,
    330, 331, 336, 342, 345, 349, 350, 351, 352, 355, 357, 368, 370, 371, 374, 379, 380, 383, 384, 397, 401, 403, 405,
    407, 408, 411, 412, 413, 414, 417, 419, 421, 423, 427, 429, 430, 432, 440, 441, 442, 443, 444, 446, 454, 457,
)  # fmt: skip
IMAGES, LISTS, CONTEXT = "JPEGImages", "ImageSets/Context", "pascal-context/trainval"
SEMANTIC = ("semseg/VOC12", "semseg/pascal-context")  # the first folder with the image counts
PARTS_FOLDER, NORMALS, SALIENCY = "human_parts", "normals_distill", "sal_distill"
SOURCE = (
    "PASCAL_MT.tgz is linked from github.com/facebookresearch/astmt, and "
    "python -m mtl.data.pascal_context --make-fixture DIR writes a tiny one."
)


class PascalContext:
    """Photographs with five targets, in the layout of PASCAL_MT.

    ``ImageSets/Context/val.txt`` is the test split. The last ``validation`` (a share) of ``train.txt`` is the
    validation split, the same for every seed. With 0, the test split is also the validation split. ``augment``:
    training samples are flipped with probability 1/2; the papers' codes also scale and rotate, each differently.

    Inputs: ``[B, 3, image_size, image_size]``, normalised as the backbone wants. Images have up to 500 pixels a
    side; they are not resized but padded on the right and below with black pixels without labels. Targets of that size:

    - ``segmentation``: 21 classes, 255 if missing;
    - ``human_parts``: 6 classes and the background 0; 255 if missing, as in every image without parts;
    - ``normals`` ``[B, 3, …]``: predictions of a network for NYU; the zero vector if missing, as for all classes that
      NYU lacks;
    - ``saliency`` ``[B, 1, …]``: 1 or 0, NaN if missing;
    - ``edges`` ``[B, 1, …]``: 1 if the next pixel to the right or below belongs to another of the 459 classes, else 0,
      NaN if missing; the official code takes the thinned Laplacian of the classes.

    Raises ValueError for missing files; when a sample is read, for a file that is unreadable, has another shape or a
    label out of range. The message names the file. Source: Mottaghi et al. 2014; Chen et al. 2014 (parts);
    Maninis et al. 2019 (ASTMT).
    """

    targets = ("segmentation", "human_parts", "normals", "saliency", "edges")

    def __init__(
        self, root: str, batch_size: int = 8, image_size: int = 512, validation: float = 0.1, augment: bool = True
    ) -> None:
        require_positive(batch_size=batch_size, image_size=image_size)
        needed = {IMAGES: "*.jpg", CONTEXT: "*.mat", PARTS_FOLDER: "*.mat", NORMALS: "*.png", SALIENCY: "*.png"}
        needed[SEMANTIC[0]] = "*.png"
        train_list, test_list = (f"{LISTS}/{split}.txt" for split in ("train", "val"))
        self._root = find_root(root, needed | {train_list: "names", test_list: "names"}, SOURCE)
        self.batch_size, self._image_size = batch_size, image_size
        self.kinds = dict(
            segmentation="segmentation", human_parts="segmentation", normals="normals", saliency="mask", edges="mask"
        )
        self.input_info, self.class_names = {"in_channels": 3, "image_size": image_size}, NAMES
        items = splits(_names(self._root / train_list), _names(self._root / test_list), validation)
        self.preprocess = ImagePreprocess([image_size, image_size], fit="pad")
        self.normalize, self.metadata = self.preprocess.normalize, {"transform": {"pad": self.preprocess.size}}
        self.train, self.val, self.test = split_samples(
            items, self._read, self.preprocess, v2.RandomHorizontalFlip() if augment else None
        )

    def metrics(self, target: str) -> dict[str, Metric]:
        """The usual metrics, see mtl.metrics; papers report ODS-F for edges, which needs the BSDS benchmark."""
        if target in CLASSES:
            return metrics.segmentation(CLASSES[target], IGNORED)
        return {"normals": metrics.normals, "saliency": metrics.saliency, "edges": metrics.edges}[target]()

    def _read(self, name: str) -> Read:
        image = read_image(self._root / IMAGES / f"{name}.jpg")
        size = image.shape[-2:]
        right, below = self._image_size - size[1], self._image_size - size[0]
        if min(right, below) < 0:
            file = self._root / IMAGES / f"{name}.jpg"
            raise ValueError(f"{file} has {size[0]}×{size[1]} pixels, more than data.image_size={self._image_size}.")
        context = self._context(name, size)
        made: list[tuple[str, Any, float]] = [
            ("segmentation", self._segmentation(name, size), IGNORED),
            ("human_parts", self._parts(name, size), IGNORED),
            ("normals", self._normals(name, context), 0.0),
            ("saliency", self._saliency(name, size), np.nan),
            ("edges", tv_tensors.Mask(torch.from_numpy(borders(context[None]))), np.nan),
        ]
        return self.preprocess.fitted(image), {
            key: tv_tensors.wrap(pad(value, (0, right, 0, below), value=mark), like=value) for key, value, mark in made
        }

    def _context(self, name: str, size: tuple[int, ...]) -> NDArray[Any]:
        file = self._root / CONTEXT / f"{name}.mat"
        with errors_named_by(file):
            classes = scipy.io.loadmat(file)["LabelMap"]
        check_shape(file, classes, size)
        return classes

    def _segmentation(self, name: str, size: tuple[int, ...]) -> tv_tensors.Mask:
        files = [self._root / folder / f"{name}.png" for folder in SEMANTIC]
        file = next((file for file in files if file.exists()), files[0])
        classes = read_png(file, CLASS_MODES)
        check_shape(file, classes, size)
        return as_classes(file, classes, CLASSES["segmentation"], IGNORED)

    def _parts(self, name: str, size: tuple[int, ...]) -> tv_tensors.Mask:
        file = self._root / PARTS_FOLDER / f"{name}.mat"
        classes = np.zeros(size, np.int64)
        with errors_named_by(file):
            for thing in _as_list(scipy.io.loadmat(file, simplify_cells=True)["anno"]["objects"]):
                if thing["class_ind"] != PERSON:
                    continue
                for part in _as_list(thing["parts"]):
                    classes[part["mask"].astype(bool)] = PARTS[part["part_name"]]
        if not classes.any():
            classes[:] = IGNORED
        return as_classes(file, classes, CLASSES["human_parts"], IGNORED)

    def _normals(self, name: str, context: NDArray[Any]) -> Normals:
        file = self._root / NORMALS / f"{name}.png"
        coded = read_png(file, COLOUR)
        check_shape(file, coded, (*context.shape, 3))
        known = np.isin(context, KNOWN_NORMALS)[..., None]
        vectors = np.where(known, coded / np.float32(127.5) - 1, 0).astype(np.float32)
        return Normals(torch.from_numpy(vectors).permute(2, 0, 1))

    def _saliency(self, name: str, size: tuple[int, ...]) -> tv_tensors.Mask:
        file = self._root / SALIENCY / f"{name}.png"
        grey = read_png(file, GREY)
        check_shape(file, grey, size)
        if grey.max() == 1:
            raise ValueError(f"{file} has the values 0 and 1 only; a saliency map is grey from 0 to 255.")
        return tv_tensors.Mask(torch.from_numpy((grey > 127.5).astype(np.float32))[None])


def _names(file: Path) -> list[str]:
    names = file.read_text().split()
    if not names:
        raise ValueError(f"{file} is empty.")
    return names


def _as_list(cells: Any) -> list[Any]:
    """A MATLAB struct array as a list: scipy loads one element as a dict, and none as an empty array."""
    return [cells] if isinstance(cells, dict) else list(cells)


def make_fixture(root: Path, height: int = 20, width: int = 28, train: int = 8, val: int = 3) -> None:
    """Write a tiny PASCAL_MT of random scenes; every other image has a person and is in SEMANTIC's first folder."""
    rng = np.random.default_rng(0)
    for folder in (IMAGES, LISTS, CONTEXT, *SEMANTIC, PARTS_FOLDER, NORMALS, SALIENCY):
        (root / folder).mkdir(parents=True)
    for split, count in (("train", train), ("val", val)):
        names = [f"2008_{split == 'val':d}{i:05d}" for i in range(count)]
        (root / LISTS / f"{split}.txt").write_text("\n".join(names) + "\n")
        for i, name in enumerate(names):
            made = fixtures.scene(rng, height, width, CLASSES["segmentation"])
            classes = made["classes"].astype(np.uint8)
            Image.fromarray(made["image"]).save(root / IMAGES / f"{name}.jpg", quality=95)
            semantic = fixtures.corner(classes, IGNORED, 3, 3)
            Image.fromarray(semantic).save(root / SEMANTIC[i % 2] / f"{name}.png")
            scipy.io.savemat(root / CONTEXT / f"{name}.mat", {"LabelMap": classes.astype(np.uint16) + 1})
            scipy.io.savemat(root / PARTS_FOLDER / f"{name}.mat", {"anno": _annotation(name, classes, i % 2 == 0)})
            coded = (127.5 * (made["normals"] + 1)).round().astype(np.uint8)
            Image.fromarray(coded).save(root / NORMALS / f"{name}.png")
            salient = (255 * fixtures.smooth(rng, height, width)).astype(np.uint8)
            Image.fromarray(salient).save(root / SALIENCY / f"{name}.png")


def _annotation(name: str, classes: NDArray[Any], person: bool) -> dict[str, Any]:
    """One object in the format of PASCAL-Part, with parts if it is a person."""
    named = [("head", classes == 5), ("torso", classes == 6), ("lfoot", classes == 7)] if person else []
    parts = np.zeros(len(named), [("part_name", object), ("mask", object)])
    for i, (part, mask) in enumerate(named):
        parts[i] = (part, mask.astype(np.uint8))
    objects = np.zeros(1, [("class", object), ("class_ind", object), ("mask", object), ("parts", object)])
    objects[0] = ("person", PERSON, (classes == 5).astype(np.uint8), parts) if person else ("cat", 8, classes, parts)
    return {"imname": name, "objects": objects}


if __name__ == "__main__":
    fixtures.main(make_fixture)
