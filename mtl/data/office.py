"""Office-31 and Office-Home: the domains are the tasks, each with its own images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchmetrics import Metric

from mtl import metrics
from mtl.data import SPLITS, fixtures
from mtl.data.files import height_and_width
from mtl.data.folder import errors_named_by, find_root
from mtl.data.own_inputs import OwnInputs
from mtl.data.preprocess import ImagePreprocess
from mtl.errors import require, require_positive

SOURCE = (
    "the images are at faculty.cc.gatech.edu/~judy/domainadapt (31) and hemanthdv.org/officeHomeDataset.html (Home), "
    "the lists of the field's splits are in LibMTL's example, and "
    "python -m mtl.data.office --make-fixture DIR writes a tiny one."
)

Images = list[tuple[str, int]]  # paths below the root, and classes


class Office:
    """The domains of Office-31 or Office-Home. Each is a task: to classify its images into ``classes`` objects.

    ``root`` has the images, and ``lists`` (default: the same folder) has ``<domain>_{train,val,test}.txt`` with lines
    ``path class``; usually 60 / 20 / 20 % of the images. There is no augmentation.

    Inputs: a dict domain -> ``[B, 3, *image_size]``, normalised as the backbone wants. Targets: a
    dict domain -> classes. A training batch has ``batch_size`` images of every domain. An epoch is one pass over the
    largest domain; smaller domains start over when they end, so that each of their images is used equally often, and a
    batch may have an image twice. Validation and test use every image once.

    Raises ValueError for missing files and malformed lines; when a sample is read, for an unreadable image. The message
    names the file. Source: Saenko et al. 2010; Venkateswara et al. 2017; the splits are LibMTL's.
    """

    inputs_per_task = True

    def __init__(
        self,
        root: str,
        domains: Sequence[str],
        classes: int,
        lists: str | None = None,
        batch_size: int = 64,
        image_size: int | Sequence[int] = 224,
        seed: int = 0,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        require_positive(batch_size=batch_size, classes=classes)
        size = height_and_width(image_size)
        require("domains", list(domains), "a list of one name or more", bool(domains))
        self.targets, self.classes, self.batch_size = tuple(domains), classes, batch_size
        self.input_info = {"in_channels": 3, "image_size": image_size if isinstance(image_size, int) else size}
        self.kinds = dict.fromkeys(domains, "class")
        needed = {f"{domain}_train.txt": "a list of images" for domain in domains}
        folder = find_root(lists or root, needed, SOURCE)
        images = find_root(root, {}, SOURCE)

        def listed(split: str) -> dict[str, Images]:
            return {domain: _read_list(folder / f"{domain}_{split}.txt", images, classes) for domain in domains}

        lists_of = {split: listed(split) for split in SPLITS}
        every = [item for split in lists_of.values() for own in split.values() for item in own]
        known = metadata["classes"] if metadata else None
        self.metadata = {
            "classes": _class_folders(every, classes, known),
            "transform": {"resize": size},
        }
        self.preprocess = ImagePreprocess(size)
        self.normalize = self.preprocess.normalize
        names = [index if name is None else name for index, name in enumerate(self.metadata["classes"])]
        self.class_names = dict.fromkeys(domains, names)
        self.train, self.val, self.test = (
            OwnInputs(
                own,
                partial(_read, images, self.preprocess),
                [path for items in own.values() for path, _ in items],
                seed if split == "train" else None,
            )
            for split, own in lists_of.items()
        )

    def metrics(self, target: str) -> dict[str, Metric]:
        """Accuracy: the share of correctly classified images of a domain."""
        return metrics.classification(self.classes)


def _read(root: Path, preprocess: ImagePreprocess, paths: Sequence[str]) -> Tensor:
    return torch.stack([preprocess(root / path) for path in paths])


def _class_folders(
    images: Iterable[tuple[str, int]], classes: int, known: Sequence[str | None] | None
) -> list[str | None]:
    """The folder of each class, in the order of the indices; None without images, or where they lie in several folders.

    ValueError if a class has another folder than the ``known`` one: then an index means another object.
    """
    folders: list[set[str]] = [set() for _ in range(classes)]
    for path, label in images:
        folders[label].add(Path(path).parent.name)
    found = [own.pop() if len(own) == 1 else None for own in folders]
    for index, (now, before) in enumerate(zip(found, known or found, strict=True)):
        if None not in (now, before) and now != before:
            raise ValueError(
                f"the lists have images of {now} as class {index}, which was {before} when the model learnt."
            )
    return list(known or found)


def _read_list(file: Path, root: Path, classes: int) -> Images:
    with errors_named_by(file):
        lines = [line.strip() for line in file.read_text().splitlines() if line.strip()]
    images = []
    for line in lines:
        path, _, label = line.rpartition(" ")
        if not path or not label.isdecimal() or int(label) >= classes:
            raise ValueError(
                f"{file} has the line '{line}'; a line must be a path and a class from 0 to {classes - 1}."
            )
        if not (root / path).is_file():
            raise ValueError(f"{file} lists {path}, but {root / path} does not exist: {SOURCE}")
        images.append((path, int(label)))
    if not images:
        raise ValueError(f"{file} lists no image.")
    return images


def make_fixture(root: Path, sizes: dict[str, tuple[int, int, int]] | None = None, classes: int = 31) -> None:
    """Write a tiny Office-31 of random scenes; ``sizes``: domain -> the number of images in its three splits."""
    rng = np.random.default_rng(0)
    for domain, counts in (sizes or {"amazon": (12, 4, 4), "dslr": (5, 2, 3), "webcam": (7, 3, 2)}).items():
        for split, count in zip(SPLITS, counts, strict=True):
            lines = []
            for number in range(count):
                label = int(rng.integers(classes))
                path = f"{domain}/images/class_{label:02d}/{split}_{number:04d}.jpg"
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(fixtures.scene(rng, 30, 40, 5)["image"]).save(root / path)
                lines.append(f"{path} {label}\n")
            (root / f"{domain}_{split}.txt").write_text("".join(lines))


if __name__ == "__main__":
    fixtures.main(make_fixture)
