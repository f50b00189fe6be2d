"""Data sets made of files: missing files are reported at the start, unreadable ones by their path."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from mtl.data.augment import Depth, Normals
from mtl.data.folder import errors_named_by
from mtl.data.pixels import to_rgb
from mtl.data.preprocess import ImagePreprocess
from mtl.errors import require

log = logging.getLogger(__name__)

Item = TypeVar("Item")
# Modes of a map that is stored as an image, for read_png. A palette's colours are for the eye: its numbers are classes.
CLASS_MODES, DEEP, COLOUR, GREY = ("L", "P", "1", "I;16", "I"), ("I;16", "I;16B", "I"), ("RGB",), ("L",)

Read = tuple[tv_tensors.Image, dict[str, Tensor]]  # an image and its targets
Transform = Callable[[Any, Any], Any]


class Samples(Dataset):
    """Samples that are read one by one: ``read(item)`` returns an image ``[3, H, W]`` and its targets, as tv_tensors.

    ``transform`` is applied to both together; it draws from torch's global generator, which the loader seeds by seed,
    epoch and sample. Then ``preprocess`` normalises the image. ``digest`` is one of the labels, where they are at hand.
    """

    def __init__(
        self,
        items: Sequence[Any],
        read: Callable[[Any], Read],
        preprocess: ImagePreprocess,
        transform: Transform | None = None,
        digest: str | None = None,
    ) -> None:
        self._items, self._read, self._preprocess, self._transform = items, read, preprocess, transform
        self.digest = digest

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        image, targets = self._read(self._items[index])
        if self._transform is not None:
            image, targets = self._transform(image, targets)
        return self._preprocess.finish(image), {name: target.as_subclass(Tensor) for name, target in targets.items()}

    @property
    def names(self) -> list[str]:
        """What tells the samples apart: the text and numbers of their items."""
        return [item if isinstance(item, str) else "/".join(_words(item)) for item in self._items]


def _words(item: Sequence[Any]) -> list[str]:
    return [str(part) for part in item if isinstance(part, str | int)]


# ------------------------------------------------------------------------------------------ at the start


def height_and_width(image_size: int | Sequence[int]) -> list[int]:
    """The height and width of images, of which one number is both; ValueError for anything else."""
    sides = [image_size] * 2 if isinstance(image_size, int) else list(image_size)
    fine = len(sides) == 2 and all(isinstance(side, int) and side >= 1 for side in sides)
    accepted = "a whole number of 1 or more, or two of them, [height, width]"
    require("image_size", image_size, accepted, fine)
    return sides


def splits(
    train: Sequence[Item], test: Sequence[Item], validation: float
) -> tuple[Sequence[Item], Sequence[Item], Sequence[Item]]:
    """Training, validation and test items of a data set whose authors define no validation split.

    The last ``validation`` (a share) of the training items is the validation split, so that neighbouring items, which
    may show one scene, stay together. With 0, the test split is also the validation split, as in published results.
    ValueError for a share outside [0, 1), or if no training item remains.
    """
    if not 0 <= validation < 1:
        raise ValueError(f"validation={validation} must be from 0 (val is the test split, as published) to below 1.")
    if validation == 0:
        log.warning(
            "validation=0: val is the test split, as published, so the best model is selected on the test split"
        )
        return train, test, test
    cut = len(train) - max(1, round(len(train) * validation))
    if cut < 1:
        raise ValueError(f"validation={validation} leaves none of {len(train)} items for training.")
    return train[:cut], train[cut:], test


def split_samples(
    items: tuple[Sequence[Item], Sequence[Item], Sequence[Item]],
    read: Callable[[Item], Read],
    preprocess: ImagePreprocess,
    training: Transform | None = None,
    evaluation: Transform | None = None,
) -> tuple[Samples, Samples, Samples]:
    """Training, validation and test samples of the items in the three splits, with the transforms of each."""
    train, val, test = items
    return (
        Samples(train, read, preprocess, training),
        Samples(val, read, preprocess, evaluation),
        Samples(test, read, preprocess, evaluation),
    )


# --------------------------------------------------------------------------------------------- one file


def read_image(file: Path) -> tv_tensors.Image:
    """An image file as RGB ``[3, H, W]``: uint8, or float32 from 0 to 1 where it is deeper; see :func:`to_rgb`."""
    with errors_named_by(file), Image.open(file) as image:
        return tv_tensors.Image(torch.from_numpy(to_rgb(image)).permute(2, 0, 1))


def read_labelled(folder: Path, item: tuple[str, dict[str, Any]]) -> Read:
    """The image at a path in ``folder`` as :func:`read_image`, and its labels as tensors."""
    name, labels = item
    return read_image(folder / name), {target: torch.as_tensor(label) for target, label in labels.items()}


def read_png(file: Path, modes: Sequence[str]) -> NDArray[Any]:
    """The raw values of an image file, ``[H, W]`` or ``[H, W, C]``, such as class indices or 16-bit depth.

    ValueError unless Pillow's mode of the file is one of ``modes``: the same numbers mean something else in another.
    """
    with errors_named_by(file), Image.open(file) as image:
        if image.mode not in modes:
            raise ValueError(f"its mode is {image.mode}, but {' or '.join(modes)} is expected")
        return np.array(image)


def read_array(file: Path) -> NDArray[Any]:
    """The array of a .npy file; ValueError unless it holds numbers."""
    with errors_named_by(file):
        array = np.load(file, allow_pickle=False)
        if array.dtype.kind not in "fiub":
            raise ValueError(f"it holds {array.dtype}, not numbers")
        return array


def check_shape(file: Path, array: NDArray[Any], shape: Sequence[int]) -> None:
    """ValueError unless the array has this shape."""
    if array.shape != tuple(shape):
        raise ValueError(f"{file} has the shape {list(array.shape)}, but {list(shape)} is expected.")


def as_classes(file: Path, array: NDArray[Any], num_classes: int, ignored: int) -> tv_tensors.Mask:
    """Class indices ``[H, W]``; ValueError unless all are integers below ``num_classes``, or ``ignored``."""
    with np.errstate(invalid="ignore"):
        labels = array.astype(np.int64)
    known = (labels >= 0) & (labels < num_classes) | (labels == ignored)
    wrong = ~known | (labels != array)
    if wrong.any():
        value = array[wrong][0]
        raise ValueError(
            f"{file} has the label {value:g}; accepted are 0 to {num_classes - 1}, and {ignored} for a missing label."
        )
    return tv_tensors.Mask(torch.from_numpy(labels))


def as_depth(file: Path, array: NDArray[Any], kind: type[tv_tensors.Mask] = Depth) -> tv_tensors.Mask:
    """Depth or disparity ``[H, W]`` as ``[1, H, W]``; 0 and NaN are missing. ValueError if negative or infinite."""
    wrong = (array < 0) | np.isinf(array)
    if wrong.any():
        raise ValueError(f"{file} has the value {array[wrong][0]:g}; it must be 0 (missing) or more, and finite.")
    return kind(torch.from_numpy(array.astype(np.float32))[None])


def as_normals(file: Path, array: NDArray[Any]) -> Normals:
    """Normals ``[H, W, 3]`` as ``[3, H, W]``; ValueError for a value outside -1 to 1."""
    wrong = ~(np.abs(array) <= 1.001)
    if wrong.any():
        raise ValueError(
            f"{file} has the value {array[wrong][0]:g}; a normal's values are from -1 to 1, all 0 if it is missing."
        )
    return Normals(torch.from_numpy(array.astype(np.float32)).permute(2, 0, 1))
