"""The sizes of image files, read without their pixels, beside the size that a model is given."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

log = logging.getLogger(__name__)

DEFAULT_SIZE = 128  # of an image's sides, for the model
STEP = 32  # by which most backbones reduce an image
SIZED = 16  # files that tell the size of all


def median_size(files: Sequence[Path]) -> tuple[int, int] | None:
    """The median height and width of image files; None where none of them tells."""
    sizes: list[tuple[int, int]] = []
    for file in files:
        try:
            with Image.open(file) as image:
                sizes.append((image.height, image.width))
        except (OSError, ValueError):  # whoever reads its pixels says so
            continue
    return (int(np.median([h for h, _ in sizes])), int(np.median([w for _, w in sizes]))) if sizes else None


def say_scale(files: tuple[int, int] | None, size: Sequence[int]) -> None:
    """Log the median size of the files, where it is scaled up to more than twice or down to less than a quarter."""
    factor = 1.0 if files is None else max(size[0] / files[0], size[1] / files[1])
    if files is None or 0.25 <= factor <= 2:
        return
    log.info(
        "the images have %d×%d pixels (the median of the first %d) and are scaled %s to %d×%d; data.image_size=… "
        "changes that", *files, SIZED, "up" if factor > 1 else "down", *size,
    )  # fmt: skip


def size_for(files: tuple[int, int] | None) -> int:
    """The image_size for files of a median size: the default, or for small ones the multiple of 32 that holds them."""
    return DEFAULT_SIZE if files is None else min(DEFAULT_SIZE, -(-max(files) // STEP) * STEP)
