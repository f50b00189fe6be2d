"""MultiMNIST: two overlapping handwritten digits an image, from the files of MNIST."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor
from torchmetrics import Metric
from torchvision.datasets.mnist import read_image_file, read_label_file

from mtl.data import fixtures
from mtl.data.digits import CLASSES, Pairs
from mtl.data.files import check_batch_size, errors_named_by, find_root, splits
from mtl.metrics import classification

RAW = Path("MNIST/raw")
NAMES = {"train": "train", "test": "t10k"}
SIDE, OFFSET, MARGIN = 28, 6, 2  # pixels of a digit, by how many the right one is moved, and what is empty beyond it
MEAN, STD = 0.1307, 0.3081  # of MNIST's pixels
SOURCE = (
    "torchvision.datasets.MNIST(root, download=True) fetches them, and "
    "python -m mtl.data.multimnist --make-fixture DIR writes a tiny one."
)


class MultiMNIST:
    """Pairs of MNIST's digits, read by torchvision from ``root/MNIST/raw/*-ubyte``, in the protocol of the MTL papers.

    A 36×36 canvas has one digit at the top left and one 6 pixels down and to the right, the brighter pixel where they
    overlap, resized to the nearest of ``image_size`` pixels. Each digit is the left one once; its partner is drawn once
    from the same split, of any class, the same for every ``seed`` of a run. The last ``validation`` of the 60,000
    training digits are held out before they are paired: a sixth is Kurin et al.'s 50,000 / 10,000 / 10,000; with 0
    validation is on the test digits, as in Sener & Koltun's 60,000 / 10,000.

    Inputs: ``[B, 1, image_size, image_size]``. Targets, all class indices: ``left``, ``right``, and the further ones of
    mtl.data.digits. Raises ValueError for files that are missing or broken, which it names.
    Source: Sener & Koltun 2018; Kurin et al. 2022.
    """

    targets = tuple(CLASSES)

    def __init__(self, root: str, batch_size: int = 256, image_size: int = SIDE, validation: float = 1 / 6) -> None:
        check_batch_size(batch_size)
        if image_size < 1:
            raise ValueError(f"image_size={image_size} must be 1 or more.")
        files = [_file(split, what) for split in NAMES for what in ("images-idx3", "labels-idx1")]
        folder = find_root(root, dict.fromkeys(map(str, files), "of MNIST, unpacked"), SOURCE)
        self.batch_size, self.kinds = batch_size, dict.fromkeys(CLASSES, "class")
        self.input_info = {"in_channels": 1, "image_size": image_size}
        digits = {split: _read(folder, split) for split in NAMES}
        train, val, test = splits(range(len(digits["train"][1])), range(len(digits["test"][1])), validation)

        def pairs(part: Sequence[int], source: str, seed: int) -> Pairs:
            scans, labels = (values[list(part)] for values in digits[source])
            return Pairs(
                scans, labels, OFFSET, image_size, 1,
                mean=MEAN, std=STD, seed=seed, redraw=False, margin=MARGIN, mode="nearest",
            )  # fmt: skip

        self.train, self.test = pairs(train, "train", 0), pairs(test, "test", 2)
        self.val = pairs(val, "train", 1) if validation else self.test

    def metrics(self, target: str) -> dict[str, Metric]:
        """Accuracy: the share of images whose class is right."""
        return classification(CLASSES[target])


def _read(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """The digits ``[n, 28, 28]``, bytes, and their classes."""
    images, labels = (folder / _file(split, what) for what in ("images-idx3", "labels-idx1"))
    with errors_named_by(images):
        scans = read_image_file(str(images))
    with errors_named_by(labels):
        classes = read_label_file(str(labels))
    if scans.shape != (len(classes), SIDE, SIDE):
        raise ValueError(f"{images} has the shape {list(scans.shape)}, but {[len(classes), SIDE, SIDE]} is expected.")
    if classes.max() > 9:
        raise ValueError(f"{labels} has the label {int(classes.max())}; there are 0 to 9.")
    return scans, classes


def _file(split: str, what: str) -> Path:
    return RAW / f"{NAMES[split]}-{what}-ubyte"


def make_fixture(root: Path, train: int = 24, test: int = 6) -> None:
    """Files of MNIST's format with a few random blots, each of the ten classes in turn."""
    rng = np.random.default_rng(0)
    (root / RAW).mkdir(parents=True)
    for split, count in (("train", train), ("test", test)):
        blots = np.stack([(255 * fixtures.smooth(rng, SIDE, SIDE) ** 3).astype(np.uint8) for _ in range(count)])
        for what, array in (("images-idx3", blots), ("labels-idx1", (np.arange(count) % 10).astype(np.uint8))):
            # IDX: two zero bytes, the type (8: bytes), the number of axes, their lengths as big-endian integers, bytes.
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
            (root / _file(split, what)).write_bytes(header + array.tobytes())


if __name__ == "__main__":
    fixtures.main(make_fixture)
