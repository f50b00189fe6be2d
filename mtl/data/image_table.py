"""A folder of images with one table of labels in CSV or Parquet: classes, binary labels and numbers.

torch is imported where a data set is made: the command that describes a table does without.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mtl.data import SPLITS, fixtures
from mtl.data.columns import KINDS
from mtl.data.folder import find_root
from mtl.data.image_sizes import DEFAULT_SIZE, say_scale, size_for
from mtl.data.label_table import LabelTable
from mtl.data.table_command import add_arguments, count_rows, kinds_of, show_left_out, show_targets, show_written
from mtl.data.table_configuration import describe, write_configuration
from mtl.data.table_targets import class_names_of, scales_of
from mtl.data.target_names import target_name
from mtl.errors import require_positive

if TYPE_CHECKING:
    from torchmetrics import Metric

    from mtl.data.files import Samples, Transform

SOURCE = "give data.root=… the folder and data.labels=… the table in it."


class ImageTable:
    """Images and their labels, from a table with one row per image.

    ``labels`` is the table's path below ``root``, see mtl.data.tables. The column ``image`` (default: the first with
    paths of files) has the images' paths below ``root``, see mtl.data.image_paths. ``targets`` maps a name to one
    column or several; by default every other column is a target. The kind of a target is inferred from its columns,
    unless ``kinds`` names it:

    - ``class``: one column. Inferred for text, booleans, and integers with at most 20 distinct values.
    - ``labels``: columns of 0 and 1, or booleans, each a binary label. Inferred for several such columns.
    - ``number``: columns of numbers, standardised by the mean and deviation of the training rows; metrics are in the
      table's units. Inferred for all other numbers.
    - ``count``: columns of whole numbers from 0 on, as they are, of which a model predicts the logarithm of the mean:
      see mtl.losses.MaskedPoisson. Never inferred.

    An empty cell or NaN is a missing label, and so is every value in ``missing``, such as ``[-1, NA]``; spaces around
    it do not count. A value that looks like such a mark is warned of; an empty list says that there is none. ``split``
    is the column with ``train``, ``val`` or ``test``. Without it, a hash of the image's name decides: about the shares
    ``validation`` and ``test`` of the images are held out, and an image's split depends neither on the seed nor on the
    other rows. Only where a split would be empty, it takes one image. ``metadata``, another run's, read the table with
    the columns, kinds, classes and statistics that its model learnt; a class that the model does not know is then an
    error. ``augment``: random crops and horizontal flips, which are wrong for targets that describe positions.

    Inputs: ``[B, 3, *image_size]``, resized and normalised as the backbone wants.
    Targets: ``class`` ``[B]``, -100 if missing; the others ``[B, columns]``, NaN if missing.

    Raises ValueError for a missing or invalid table, column, cell or image, with its row, of which the header is 1;
    when a sample is read, for an unreadable image.
    """

    def __init__(
        self,
        root: str,
        labels: str = "labels.csv",
        image: str | None = None,
        targets: Mapping[str, str | Sequence[str]] | None = None,
        kinds: Mapping[str, str] | None = None,
        split: str | None = None,
        validation: float = 0.15,
        test: float = 0.15,
        batch_size: int = 32,
        image_size: int | Sequence[int] = DEFAULT_SIZE,
        augment: bool = False,
        missing: Sequence[Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        from torchvision.transforms import v2

        from mtl.data.files import height_and_width
        from mtl.data.preprocess import ImagePreprocess

        require_positive(batch_size=batch_size)
        size = height_and_width(image_size)
        folder = find_root(root, {labels: "the labels"}, SOURCE, suggest=True)
        table = LabelTable(folder, labels, image, targets, kinds, split, validation, test, missing, metadata)
        say_scale(table.file_size, size)
        self.image, self.columns, self.counts = table.image, table.columns, table.counts
        self.targets = tuple(self.columns)
        self.kinds = {name: "value" if c.kind in ("number", "count") else "class" for name, c in self.columns.items()}
        self.class_names, self.scales = class_names_of(self.columns), scales_of(self.columns)
        self.batch_size = batch_size
        self.input_info = {"in_channels": 3, "image_size": image_size if isinstance(image_size, int) else size}
        self.preprocess = ImagePreprocess(size)
        self.normalize, resize = self.preprocess.normalize, self.preprocess.resize
        crop = v2.RandomResizedCrop(size, scale=(0.5, 1.0))
        training = v2.Compose([crop, v2.RandomHorizontalFlip()]) if augment else resize
        self.train, self.val, self.test = (
            self._samples(table, part, training if part == "train" else resize) for part in SPLITS
        )
        self.metadata = {
            "image": self.image,
            "targets": {name: asdict(column) for name, column in self.columns.items()},
            "transform": {"resize": size},
        }

    def _samples(self, table: LabelTable, part: str, transform: Transform) -> Samples:
        """The rows of a split: an image's path and its labels for each."""
        from mtl.data.files import Samples, read_labelled
        from mtl.data.metadata import digest

        rows = table.parts == part
        values = {target: own[rows] for target, own in table.values.items()}
        labels = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
        items = [*zip(table.paths[rows], labels, strict=True)]
        read = partial(read_labelled, table.folder)
        return Samples(items, read, self.preprocess, transform, digest(*values.values()))

    def metrics(self, target: str) -> dict[str, Metric]:
        """``accuracy`` for classes; mean ``f1`` and ``accuracy`` for labels; ``abs_err`` and ``rmse`` for numbers.

        Several numbers have one metric per column, as ``abs_err_<column>``. Missing labels are ignored.
        """
        from mtl import metrics

        column = self.columns[target]
        if column.kind == "class":
            return metrics.classification(len(column.classes))
        if column.kind == "labels":
            return metrics.attributes(None if column.width == 1 else column.width)
        endings = [""] if column.width == 1 else [f"_{target_name(name)}" for name in column.columns]
        return metrics.counts(endings) if column.kind == "count" else metrics.standardised(column.std, endings)


# ---------------------------------------------------------------------------------------- the command


def make_fixture(root: Path, rows: int = 24) -> None:
    """Write images of blots: three colours, round or square, striped or not, with a size; some cells are empty."""
    rng = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    colours = {"blue": (60, 90, 220), "green": (70, 190, 80), "red": (220, 60, 60)}
    lines = ["file,colour,round,striped,size"]
    down, right = np.mgrid[:24, :32]
    for i in range(rows):
        colour, is_round, striped = list(colours)[i % 3], i % 2, int(rng.integers(2))
        radius = rng.uniform(4, 11)
        distance = np.hypot(down - 12, right - 16) if is_round else np.maximum(abs(down - 12), abs(right - 16))
        inside = (distance < radius) & ((right % 4 < 2) | (striped == 0))
        pixels = np.where(inside[..., None], colours[colour], 240) + rng.normal(0, 4, (24, 32, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / "images" / f"{i}.png")
        cells = [colour, str(is_round), str(striped), f"{radius:.2f}"]
        if i % 8 == 5:
            cells[i // 8 % len(cells)] = ""
        lines.append(",".join([f"images/{i}.png", *cells]))
    (root / "labels.csv").write_text("\n".join(lines) + "\n")


def main() -> None:
    """Print the inferred kinds of a table's columns, and write a configuration that trains on them."""
    parser = argparse.ArgumentParser("python -m mtl.data.image_table", description=main.__doc__)
    parser.add_argument("root", nargs="?", help="the folder with the images and the table")
    parser.add_argument("--labels", default="labels.csv", help="the table's path in that folder: .csv or .parquet")
    parser.add_argument("--image", help="the column with the images' paths; default: the first")
    add_arguments(parser, KINDS)
    given = parser.parse_args()
    if given.make_fixture is not None:
        fixtures.write(make_fixture, given.make_fixture, parser)
        return
    if given.root is None:
        parser.error("give the folder with the images and the table.")
    arguments: dict[str, Any] = {"root": str(Path(given.root).absolute()), "labels": given.labels, "image": given.image}
    arguments["split"] = given.split
    if given.missing is not None:
        arguments["missing"] = given.missing
    try:
        data, left_out = describe(**arguments, kinds=kinds_of(given.kinds))
        print(f"{count_rows(data.parts)}; an image is {data.image}")
        if data.file_size is not None:
            high, wide = data.file_size
            print(
                f"an image has {high}×{wide} pixels and is scaled to image_size={size_for(data.file_size)} of each side"
            )
        show_targets(data.columns, data.counts)
        show_left_out(left_out)
        if given.write is not None:
            show_written(write_configuration(data, arguments, given.write, given.name), given.write, given.name)
    except ValueError as error:
        sys.exit(f"{parser.prog}: {error}")


if __name__ == "__main__":
    main()
