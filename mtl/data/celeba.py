"""CelebA: forty binary attributes of faces, each a task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image
from torchmetrics import Metric

from mtl import metrics
from mtl.data import fixtures
from mtl.data.files import Read, Samples, height_and_width, read_image
from mtl.data.folder import errors_named_by, find_root
from mtl.data.metadata import digest
from mtl.data.preprocess import ImagePreprocess
from mtl.errors import require_positive

IMAGES, LABELS, PARTITION = "Img/img_align_celeba", "Anno/list_attr_celeba.txt", "Eval/list_eval_partition.txt"
SOURCE = (
    "the aligned images and both lists are at mmlab.ie.cuhk.edu.hk/projects/CelebA.html, and "
    "python -m mtl.data.celeba --make-fixture DIR writes a tiny one."
)
ATTRIBUTES = (
    "5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs", "Big_Lips",
    "Big_Nose", "Black_Hair", "Blond_Hair", "Blurry", "Brown_Hair", "Bushy_Eyebrows", "Chubby", "Double_Chin",
    "Eyeglasses", "Goatee", "Gray_Hair", "Heavy_Makeup", "High_Cheekbones", "Male", "Mouth_Slightly_Open",
    "Mustache", "Narrow_Eyes", "No_Beard", "Oval_Face", "Pale_Skin", "Pointy_Nose", "Receding_Hairline",
    "Rosy_Cheeks", "Sideburns", "Smiling", "Straight_Hair", "Wavy_Hair", "Wearing_Earrings", "Wearing_Hat",
    "Wearing_Lipstick", "Wearing_Necklace", "Wearing_Necktie", "Young",
)  # fmt: skip


class CelebA:
    """Aligned faces and their attributes, from the original text files under ``root``:

    ``Img/img_align_celeba/*.jpg``, ``Anno/list_attr_celeba.txt`` and ``Eval/list_eval_partition.txt``, which defines
    the splits (162,770, 19,867 and 19,962 images). There is no augmentation.

    Inputs: ``[B, 3, *image_size]``, resized from 178×218 pixels, to a square as is usual, and normalised as
    the backbone wants. Targets: every attribute by its name, ``[B, 1]``, 1.0 or 0.0.

    Raises ValueError for missing files and malformed lists; when a sample is read, for an unreadable image. The message
    names the file. Source: Liu et al. 2015.
    """

    targets = ATTRIBUTES

    def __init__(self, root: str, batch_size: int = 256, image_size: int | Sequence[int] = 64) -> None:
        require_positive(batch_size=batch_size)
        size = height_and_width(image_size)
        folder = find_root(root, {IMAGES: "the images", LABELS: "the attributes", PARTITION: "the splits"}, SOURCE)
        self.batch_size, self.kinds = batch_size, dict.fromkeys(ATTRIBUTES, "class")
        self.input_info = {"in_channels": 3, "image_size": image_size if isinstance(image_size, int) else size}
        self._folder = folder / IMAGES
        labels = _read_labels(folder / LABELS)
        partition = _read_partition(folder / PARTITION, labels)
        self.preprocess = ImagePreprocess(size)
        self.normalize, self.metadata = self.preprocess.normalize, {"transform": {"resize": size}}

        def samples(split: int) -> Samples:
            names = partition.index[partition == split]
            own = labels.loc[names].to_numpy()
            items = list(zip(names, own, strict=True))
            return Samples(items, self._read, self.preprocess, self.preprocess.resize, digest(own))

        self.train, self.val, self.test = map(samples, range(3))

    def metrics(self, target: str) -> dict[str, Metric]:
        """``f1`` as in FAMO, and ``accuracy``: one minus the error of Sener & Koltun."""
        return metrics.attributes()

    def _read(self, item: tuple[str, NDArray[Any]]) -> Read:
        name, labels = item
        values = torch.from_numpy(labels > 0).float()[:, None]
        return read_image(self._folder / name), dict(zip(ATTRIBUTES, values, strict=True))


def _read_labels(file: Path) -> pd.DataFrame:
    """One row per image, one column per attribute, each -1 or 1."""
    with errors_named_by(file):
        table = pd.read_csv(file, sep=r"\s+", skiprows=1)
    if tuple(table.columns) != ATTRIBUTES:
        raise ValueError(f"{file}: its second line must be the {len(ATTRIBUTES)} attributes' names.")
    wrong = ~table.isin([-1, 1])
    if wrong.to_numpy().any():
        row, column = np.argwhere(wrong.to_numpy())[0]
        name, value = table.columns[column], table.iat[row, column]
        raise ValueError(f"{file} has {value} for {name} of {table.index[row]}; it must be -1 or 1.")
    return table.astype(np.int8)


def _read_partition(file: Path, labels: pd.DataFrame) -> pd.Series:
    """The split of every image: 0, 1 or 2."""
    with errors_named_by(file):
        partition = pd.read_csv(file, sep=r"\s+", header=None, index_col=0)[1]
    for name in partition.index[~partition.isin([0, 1, 2])]:
        raise ValueError(f"{file} has {partition[name]} for {name}; it must be 0 (train), 1 (val) or 2 (test).")
    for name in partition.index.difference(labels.index):
        raise ValueError(f"{file} lists {name}, which is missing in {LABELS}.")
    for number, split in enumerate(("train", "val", "test")):
        if not (partition == number).any():
            raise ValueError(f"{file} has no image of the split {number} ({split}).")
    return partition


def make_fixture(root: Path, train: int = 10, val: int = 3, test: int = 3) -> None:
    """Write a tiny CelebA of random scenes with random attributes."""
    rng = np.random.default_rng(0)
    for file in (IMAGES, LABELS, PARTITION):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / IMAGES).mkdir()
    splits = [0] * train + [1] * val + [2] * test
    names = [f"{i:06d}.jpg" for i in range(1, len(splits) + 1)]
    lines = [str(len(names)), " ".join(ATTRIBUTES) + " "]
    for name in names:
        Image.fromarray(fixtures.scene(rng, 44, 36, 5)["image"]).save(root / IMAGES / name)
        lines.append(name + " " + " ".join(f"{value:2d}" for value in rng.choice([-1, 1], len(ATTRIBUTES))))
    (root / LABELS).write_text("\n".join(lines) + "\n")
    (root / PARTITION).write_text("".join(f"{name} {split}\n" for name, split in zip(names, splits, strict=True)))


if __name__ == "__main__":
    fixtures.main(make_fixture)
