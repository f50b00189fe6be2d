"""The file layout of MTAN for NYUv2 and Cityscapes: one folder of numbered arrays per split and kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torchvision import tv_tensors

from mtl.data.files import check_shape, read_array
from mtl.data.folder import find_root
from mtl.data.preprocess import ImagePreprocess

Item = tuple[str, int]  # the name of a split's folder, and a number


class Arrays:
    """``root/{train,val}/<kind>/<i>.npy``: arrays ``[H, W, …]`` of one height and width, of any dtype.

    ``image`` is one of the ``kinds``. Its range is 0 to 255 if the first training image has integers or a value above
    1, otherwise 0 to 1, unless ``metadata`` says it. ``train`` and ``val`` are the samples, ``size`` is their height
    and width. ValueError for a missing folder, with ``source`` (how to get the files), and for a missing number.
    """

    def __init__(self, root: str, kinds: Sequence[str], source: str, metadata: Mapping[str, Any] | None = None) -> None:
        self._root = find_root(root, {f"{s}/{kind}": "<i>.npy" for s in ("train", "val") for kind in kinds}, source)
        self.train, self.val = (self._numbered(split, kinds) for split in ("train", "val"))
        first = read_array(self.file(self.train[0], "image"))
        check_shape(self.file(self.train[0], "image"), first, (*first.shape[:2], 3))
        self.size = first.shape[:2]
        seen = 255 if first.dtype.kind != "f" or first.max() > 1 else 1
        self._brightest = metadata["brightest"] if metadata else seen
        self.metadata = {"brightest": self._brightest}
        self.preprocess = ImagePreprocess(self.size, fit="exact", brightest=self._brightest)

    def file(self, item: Item, kind: str) -> Path:
        """The path of an array."""
        split, number = item
        return self._root / split / kind / f"{number}.npy"

    def read(self, item: Item, kind: str, *channels: int) -> NDArray[Any]:
        """An array ``[H, W, *channels]``; ValueError with the file if it is unreadable or has another shape."""
        array = read_array(self.file(item, kind))
        check_shape(self.file(item, kind), array, (*self.size, *channels))
        return array

    def image(self, item: Item) -> tv_tensors.Image:
        """The image ``[3, H, W]``, scaled to 0 to 1; ValueError with the file for values out of range."""
        array = self.read(item, "image", 3)
        try:
            return self.preprocess.of_array(array)
        except ValueError as error:
            words = str(error).rstrip(".")
            raise ValueError(f"{self.file(item, 'image')} {words}, as in the first training image.") from error

    def _numbered(self, split: str, kinds: Sequence[str]) -> list[Item]:
        """The samples of a split, sorted by number; every kind must have the same numbers."""
        folders = [self._root / split / kind for kind in kinds]
        numbers = [{int(file.stem) for file in folder.glob("*.npy") if file.stem.isdecimal()} for folder in folders]
        together = sorted(set.union(*numbers))
        if not together:
            raise ValueError(f"{folders[0]} holds no <number>.npy.")
        for folder, own in zip(folders, numbers, strict=True):
            if lacking := [number for number in together if number not in own]:
                raise ValueError(f"{folder / f'{lacking[0]}.npy'} is missing, one of {len(lacking)} in that folder.")
        return [(split, number) for number in together]
