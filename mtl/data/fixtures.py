"""Tiny data sets of random smooth scenes in the exact file layout of the real ones, to test and to try commands."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def smooth(rng: np.random.Generator, height: int, width: int) -> Array:
    """A random smooth field ``[height, width]``, from 0 to 1."""
    from scipy.ndimage import gaussian_filter  # slow to import, and no command needs it but to write scenes

    field = gaussian_filter(rng.normal(size=(height, width)), min(height, width) / 6, mode="reflect")
    return (field - field.min()) / (np.ptp(field) or 1)


def scene(rng: np.random.Generator, height: int, width: int, classes: int) -> dict[str, Array]:
    """An image with its targets: ``image`` ``[H, W, 3]`` uint8, ``classes``, ``depth`` in metres, unit ``normals``.

    The targets can be learnt: colours show the classes, shading shows the slope of the depth.
    """
    labels = np.minimum((smooth(rng, height, width) * classes).astype(np.int64), classes - 1)
    depth = 1 + 3 * smooth(rng, height, width)
    down, right = np.gradient(depth)
    normals = np.stack([-8 * right, -8 * down, np.ones_like(depth)], -1)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    colours = np.random.default_rng(classes).uniform(0.3, 1.0, (classes, 3))  # the same colours in every scene
    shade = 0.55 + 0.45 * (normals @ np.array([-0.6, -0.4, 0.7]))
    image = colours[labels] * shade[..., None] + 0.02 * rng.normal(size=(height, width, 3))
    return {
        "image": (image.clip(0, 1) * 255).astype(np.uint8), "classes": labels, "depth": depth, "normals": normals,
    }  # fmt: skip


def corner(array: Array, mark: float, height: int, width: int) -> Array:
    """A copy of the array whose top left corner has the value ``mark``, for missing labels."""
    array = array.copy()
    array[:height, :width] = mark
    return array


def save_array(file: Path, array: Array) -> None:
    """Write a .npy file, and the folders above it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    np.save(file, array)


def write(make_fixture: Callable[[Path], None], folder: Path, parser: argparse.ArgumentParser, more: str = "") -> None:
    """Write a fixture to a folder that is empty or does not exist, so that real data are never overwritten.

    ``more``: what else the command that trains on it must name.
    """
    if folder.exists() and any(folder.iterdir()):
        parser.error(f"{folder} is not empty: give a new folder.")
    make_fixture(folder)
    command = f"mtl-train data={Path(sys.argv[0]).stem} data.root={folder} {more}".rstrip()
    print(f"{folder} holds a tiny data set in the real layout: {command}")


def main(make_fixture: Callable[[Path], None], more: str = "") -> None:
    """The command ``python -m mtl.data.<name> --make-fixture DIR``; ``more`` as in :func:`write`."""
    parser = argparse.ArgumentParser(f"python -m mtl.data.{Path(sys.argv[0]).stem}")
    parser.add_argument(
        "--make-fixture", type=Path, metavar="DIR", required=True, help="write a tiny data set to this folder"
    )
    write(make_fixture, parser.parse_args().make_fixture, parser, more)
