"""The pixels of an image as RGB, each of Pillow's modes by its own range.

The range is the mode's and never that of the values in a file: one number is one brightness in all files of a set. A
mode without a range, or a file that is not one picture, is a ValueError.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

log = logging.getLogger(__name__)

# The TIFF tags that Pillow does not apply to greys of more than 8 bits.
KIND_OF_PAGE, BITS, PHOTOMETRIC, SAMPLE_FORMAT = 254, 258, 262, 339
REDUCED, WHITE_IS_ZERO, SIGNED = 0b101, 0, 2  # a page that is a thumbnail or a mask of another

_WARNED: set[str] = set()  # kinds of files that a warning has named


def to_rgb(image: Image.Image) -> NDArray[Any]:
    """An opened image as ``[H, W, 3]``, upright by its EXIF orientation and, where transparent, on white.

    Modes of 8 bits a channel give uint8. Deeper ones give float32 from 0 to 1, and keep their precision: 16 bits are
    divided by 65535, so that 12 bits stored in 16 are dark; floats must be from 0 to 1. Colours of 16 bits have
    the upper 8, all that Pillow reads, and a warning. ValueError with the mode for floats outside 0 to 1, and for
    integers that are signed or of 32 bits; for several frames.
    """
    _check_single(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _deep_grey(image)
    if ";16" in _raw_mode(image):
        _warn_of_lost_bits(image)
    if _tags(image).get(SAMPLE_FORMAT, (1,))[0] == SIGNED:
        raise ValueError(f"mode {image.mode} of signed integers has no black and white; store it as unsigned ones")
    upright = ImageOps.exif_transpose(image)
    if _has_transparency(upright):
        upright = upright.convert("LA") if upright.mode == "La" else upright
        white = Image.new("RGBA", upright.size, "white")
        upright = Image.alpha_composite(white, upright.convert("RGBA"))
    return np.array(upright.convert("RGB"))


def _check_single(image: Image.Image) -> None:
    """ValueError for several pictures in one file; thumbnails, and the views of a phone's MPO, are none of them."""
    count = getattr(image, "n_frames", 1) if image.format in ("GIF", "PNG", "WEBP", "AVIF", "TIFF") else 1
    if count > 1 and image.format == "TIFF":
        pages = []
        for page in range(count):
            image.seek(page)
            pages.append(not _tags(image).get(KIND_OF_PAGE, 0) & REDUCED)
        image.seek(0)
        count = sum(pages)
    if count > 1:
        raise ValueError(f"it has {count} frames, and one picture is expected; store the frame that is meant")


def _deep_grey(image: Image.Image) -> NDArray[np.float32]:
    tags = _tags(image)
    highest = _highest(image)
    clear = image.info.get("transparency")
    values = np.array(ImageOps.exif_transpose(image)).astype(np.float32)
    if image.mode == "F" and not ((values >= 0) & (values <= 1)).all():
        wrong = values[~((values >= 0) & (values <= 1))][0]
        raise ValueError(f"mode F has the value {wrong:g}; floats have no range of their own, and must be from 0 to 1")
    grey = values / np.float32(highest)
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        grey = 1 - grey
    if clear is not None:
        grey[values == clear] = 1
    return np.repeat(grey[..., None], 3, 2)


def _highest(image: Image.Image) -> float:
    """The value that is white."""
    if image.mode == "F":
        return 1
    # Pillow before 11 has mode I for 16-bit PNG, and every one for PGM, which it scales to 65535 itself.
    if image.mode == "I" and image.format not in ("PNG", "PPM"):
        raise ValueError("mode I, of 32 bits or signed integers, has no range of its own; store it in 8 or 16 bits")
    return 2 ** _tags(image).get(BITS, (16,))[0] - 1


def _warn_of_lost_bits(image: Image.Image) -> None:
    kind = f"{image.format} of mode {image.mode}"
    if kind not in _WARNED:
        _WARNED.add(kind)
        file = getattr(image, "filename", "an image")
        log.warning(
            "%s, %s, has 16 bits a channel, of which Pillow reads the upper 8: numbers of fewer bits in them, such as "
            "12, are left with few levels; store such images in 8 bits, or greys of 16", file, kind,
        )  # fmt: skip


def _has_transparency(image: Image.Image) -> bool:
    palette = image.palette.mode if image.mode == "P" and image.palette is not None else ""
    return image.getbands()[-1] in ("A", "a") or palette.endswith("A") or "transparency" in image.info


def _raw_mode(image: Image.Image) -> str:
    """How the file stores its pixels, in Pillow's words, such as RGB;16B; empty where it does not say."""
    tile: Any = getattr(image, "tile", None)
    arguments = tile[0][3] if tile else ""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _tags(image: Image.Image) -> Any:
    return getattr(image, "tag_v2", {})
