"""What is said about the sizes of image files, and chosen by them."""

import logging

import numpy as np
import pytest
from PIL import Image

from mtl.data.image_sizes import median_size, say_scale, size_for


def files(folder, *sizes):
    paths = [folder / f"{i}.png" for i in range(len(sizes))]
    for path, size in zip(paths, sizes, strict=True):
        Image.fromarray(np.zeros((*size, 3), np.uint8)).save(path)
    return paths


def test_the_median_height_and_width_of_the_files_that_can_be_read(tmp_path):
    paths = files(tmp_path, (20, 30), (24, 32), (100, 200))
    (tmp_path / "broken.png").write_bytes(b"no image")
    assert median_size([*paths, tmp_path / "broken.png", tmp_path / "absent.png"]) == (24, 32)
    assert median_size([tmp_path / "absent.png"]) is None


@pytest.mark.parametrize(
    ("size", "expected"),
    [((8, 8), 32), ((32, 32), 32), ((24, 33), 64), ((128, 90), 128), ((3000, 4000), 128), (None, 128)],
)
def test_small_files_are_not_scaled_up_far(size, expected):
    assert size_for(size) == expected


@pytest.mark.parametrize(
    ("size", "wanted", "words"),
    [
        (
            (32, 32),
            (128, 128),
            "have 32×32 pixels (the median of the first 16) and are scaled up to 128×128; data.image",
        ),
        ((1000, 2000), (128, 128), "have 1000×2000 pixels (the median of the first 16) and are scaled down to 128×128"),
        ((64, 64), (128, 128), ""),
        ((300, 500), (128, 128), ""),
        (None, (128, 128), ""),
    ],
)
def test_a_scale_that_is_far_from_one_is_said(caplog, size, wanted, words):
    with caplog.at_level(logging.INFO):
        say_scale(size, wanted)
    assert (words in caplog.text) if words else not caplog.records
