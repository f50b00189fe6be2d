"""MultiMNIST: two overlapping handwritten digits per image, from the files of MNIST."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor
from torchmetrics import Metric
from torchvision.datasets.mnist import read_image_file, read_label_file

from mtl.data import fixtures
from mtl.data.digits import CLASSES, Pairs
from mtl.data.digits import NAMES as CLASS_NAMES
from mtl.data.files import splits
from mtl.data.folder import errors_named_by, find_root
from mtl.data.preprocess import ImagePreprocess
from mtl.errors import require_positive
from mtl.metrics import classification

RAW = Path("MNIST/raw")
NAMES = {"train": "train", "test": "t10k"}
SIDE, OFFSET, MARGIN = 28, 6, 2  # pixels: a digit's side, the shift of the right digit, the empty margin beyond it
MEAN, STD = 0.1307, 0.3081  # pixel statistics of MNIST
SOURCE = (
    "torchvision.datasets.MNIST(root, download=True) fetches them, and "
    "python -m mtl.data.multimnist --make-fixture DIR writes a tiny one."
)


class MultiMNIST:
    """Pairs of MNIST digits, read by torchvision from ``root/MNIST/raw/*-ubyte``, in the protocol of the MTL papers.

    A 36×36 canvas has one digit at the top left and one 6 pixels down and to the right; the brighter pixel counts where
    they overlap. It is resized to ``image_size`` by nearest-neighbour interpolation. Each digit is the left one of one
    pair; its partner is drawn once from the same split, of any class, the same for every ``seed`` of a run. The last
    ``validation`` (a share) of the 60,000 training digits are held out before pairing: a sixth gives the 50,000 /
    10,000 / 10,000 of Kurin et al. With 0, the test split is also the validation split, as in Sener & Koltun (60,000 /
    10,000).

    Inputs: ``[B, 1, image_size, image_size]``. Targets, all class indices: ``left``, ``right``, and the other targets
    of mtl.data.digits. Raises ValueError with the file if one is missing or unreadable. Source: Sener & Koltun 2018;
    Kurin et al. 2022.
    """

    targets = tuple(CLASSES)

    def __init__(self, root: str, batch_size: int = 256, image_size: int = SIDE, validation: float = 1 / 6) -> None:
        require_positive(batch_size=batch_size, image_size=image_size)
        files = [_file(split, what) for split in NAMES for what in ("images-idx3", "labels-idx1")]
        folder = find_root(root, dict.fromkeys(map(str, files), "of MNIST, unpacked"), SOURCE)
        self.batch_size, self.kinds, self.class_names = batch_size, dict.fromkeys(CLASSES, "class"), CLASS_NAMES
        self.input_info = {"in_channels": 1, "image_size": image_size}
        self.preprocess = ImagePreprocess([image_size] * 2, fit="exact", channels=1, mean=[MEAN], std=[STD])
        digits = {split: _read(folder, split) for split in NAMES}
        train, val, test = splits(range(len(digits["train"][1])), range(len(digits["test"][1])), validation)

        def pairs(part: Sequence[int], source: str, seed: int) -> Pairs:
            scans, labels = (values[list(part)] for values in digits[source])
            return Pairs(
                scans, labels, OFFSET, 1, self.preprocess, seed=seed, redraw=False, margin=MARGIN, mode="nearest",
            )  # fmt: skip

        self.train, self.test = pairs(train, "train", 0), pairs(test, "test", 2)
        self.val = pairs(val, "train", 1) if validation else self.test

    def metrics(self, target: str) -> dict[str, Metric]:
        """Accuracy: the share of correctly classified images."""
        return classification(CLASSES[target])


def _read(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """The digits ``[n, 28, 28]``, uint8, and their classes."""
    images, labels = (folder / _file(split, what) for what in ("images-idx3", "labels-idx1"))
    with errors_named_by(images):
        scans = read_image_file(str(images))
    with errors_named_by(labels):
        classes = read_label_file(str(labels))
    if scans.shape != (len(classes), SIDE, SIDE):
        raise ValueError(f"{images} has the shape {list(scans.shape)}, but {[len(classes), SIDE, SIDE]} is expected.")
    if classes.max() > 9:
        raise ValueError(f"{labels} has the label {int(classes.max())}; accepted are 0 to 9.")
    return scans, classes


def _file(split: str, what: str) -> Path:
    return RAW / f"{NAMES[split]}-{what}-ubyte"


def make_fixture(root: Path, train: int = 24, test: int = 6) -> None:
    """Write files in the format of MNIST with a few random blots, of the ten classes in turn."""
    rng = np.random.default_rng(0)
    (root / RAW).mkdir(parents=True)
    for split, count in (("train", train), ("test", test)):
        blots = np.stack([(255 * fixtures.smooth(rng, SIDE, SIDE) ** 3).astype(np.uint8) for _ in range(count)])
        for what, array in (("images-idx3", blots), ("labels-idx1", (np.arange(count) % 10).astype(np.uint8))):
            # IDX: two zero bytes, the type (8 is uint8), the number of axes, their lengths as big-endian integers, the
            # data.
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
            (root / _file(split, what)).write_bytes(header + array.tobytes())


if __name__ == "__main__":
    fixtures.main(make_fixture)
