"""A folder of images with one table of labels in CSV or Parquet: classes, binary labels and numbers."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchmetrics import Metric
from torchvision.transforms import v2

from mtl import metrics
from mtl.data import fixtures
from mtl.data.columns import KINDS, Column, as_list, encode, encode_as, infer, known_columns, target_name
from mtl.data.files import Read, Samples, find_root, height_and_width, imagenet, read_image
from mtl.data.image_paths import find_image_column, find_images
from mtl.data.metadata import SPLITS, digest
from mtl.data.table_checks import Untrainable, check_labelled, inspect
from mtl.data.tables import check_column, first_row, read_table, share_out
from mtl.errors import require_positive

log = logging.getLogger(__name__)


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

    An empty cell or NaN is a missing label, and so is every value in ``missing``, such as ``[-1, NA]``; spaces around
    it do not count. A value that looks like such a mark is warned of; an empty list says that there is none. ``split``
    is the column with ``train``, ``val`` or ``test``. Without it, a hash of the image's name decides: about the shares
    ``validation`` and ``test`` of the images are held out, and an image's split depends neither on the seed nor on the
    other rows. Only where a split would be empty, it takes one image. ``metadata``, another run's, read the table with
    the columns, kinds, classes and statistics that its model learnt; a class that the model does not know is then an
    error. ``augment``: random crops and horizontal flips, which are wrong for targets that describe positions.

    Inputs: ``[B, 3, *image_size]``, resized and normalised as the backbone wants.
    Targets: ``class`` ``[B]``, -100 if missing; ``labels`` and ``number`` ``[B, columns]``, NaN if missing.

    Raises ValueError for a missing or invalid table, column, cell or image, with its row; when a sample is read, for an
    unreadable image.
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
        image_size: int | Sequence[int] = 128,
        augment: bool = False,
        missing: Sequence[Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        require_positive(batch_size=batch_size)
        size = height_and_width(image_size)
        where = "give data.root=… the folder and data.labels=… the table in it."
        self._folder = find_root(root, {labels: "the labels"}, where)
        self._file = self._folder / labels
        wanted, known = targets, {}
        if metadata is not None:
            image, known = metadata["image"], known_columns(metadata, targets, kinds)
            wanted = {name: column.columns for name, column in known.items()}
        table, found = read_table(self._file, image, missing or (), self._folder)
        self.image = check_column(table, found, "image", self._file)
        table[self.image] = self._find_images(table)
        parts = self._assign_splits(table, split, validation, test)
        wanted = wanted or self._all_columns(table, split)
        self.columns, values = self._encode_targets(table, wanted, kinds or {}, parts == "train", known)
        self.targets = tuple(self.columns)
        self.counts = {name: self._inspect(table, name, parts, missing) for name in self.targets}
        self.kinds = {name: "value" if c.kind == "number" else "class" for name, c in self.columns.items()}
        self.class_names = {
            name: c.columns if c.kind == "labels" else c.classes
            for name, c in self.columns.items()
            if c.classes or c.width > 1
        }
        self.scales = {name: (c.mean, c.std) for name, c in self.columns.items() if c.kind == "number"}
        self.batch_size = batch_size
        self.input_info = {"in_channels": 3, "image_size": image_size if isinstance(image_size, int) else size}
        self.normalize = imagenet()
        resize: v2.Transform = v2.Resize(size)
        crop = v2.RandomResizedCrop(size, scale=(0.5, 1.0))
        training = v2.Compose([crop, v2.RandomHorizontalFlip()]) if augment else resize
        self.train, self.val, self.test = (
            self._samples(table, values, parts, part, training if part == "train" else resize) for part in SPLITS
        )
        self.metadata = {
            "image": self.image,
            "targets": {name: asdict(column) for name, column in self.columns.items()},
            "transform": {"resize": size},
        }

    def metrics(self, target: str) -> dict[str, Metric]:
        """``accuracy`` for classes; mean ``f1`` and ``accuracy`` for labels; ``abs_err`` and ``rmse`` for numbers.

        Several numbers have one metric per column, as ``abs_err_<column>``. Missing labels are ignored.
        """
        column = self.columns[target]
        if column.kind == "class":
            return metrics.classification(len(column.classes))
        if column.kind == "labels":
            return metrics.attributes(None if column.width == 1 else column.width)
        found: dict[str, Metric] = {}
        for i, (name, std) in enumerate(zip(column.columns, column.std, strict=True)):
            known, suffix = partial(_is_labelled, i), "" if column.width == 1 else f"_{target_name(name)}"
            found[f"abs_err{suffix}"] = metrics.MaskedMean(partial(_absolute, i, std), known)
            found[f"rmse{suffix}"] = metrics.MaskedMean(partial(_squared, i, std), known, root=True)
        return found

    def _read(self, item: tuple[str, dict[str, Any]]) -> Read:
        name, labels = item
        return read_image(self._folder / name), {target: torch.as_tensor(label) for target, label in labels.items()}

    def _encode_targets(
        self,
        table: pd.DataFrame,
        wanted: Mapping[str, str | Sequence[str]],
        kinds: Mapping[str, str],
        train: NDArray[np.bool_],
        known: Mapping[str, Column],
    ) -> tuple[dict[str, Column], dict[str, NDArray[Any]]]:
        """The targets, and their values in every row; ``known`` are those of another run."""
        if unknown := sorted(set(kinds) - set(wanted)):
            raise ValueError(f"kinds.{unknown[0]} names no target; the targets are {', '.join(wanted)}.")
        found: dict[str, Column] = {}
        values: dict[str, NDArray[Any]] = {}
        for name, own in wanted.items():
            columns = tuple(check_column(table, c, f"targets.{name}", self._file) for c in as_list(own))
            if name in known:
                found[name], values[name] = known[name], encode_as(known[name], table, self._file)
                continue
            kind = kinds.get(name) or infer(table, columns, self._file)
            check_labelled(str(self._file), name, table[list(columns)], train)
            found[name], values[name] = encode(table, name, kind, columns, train, self._file)
        return found, values

    def _inspect(self, table: pd.DataFrame, name: str, parts: NDArray[Any], missing: Sequence[Any] | None) -> str:
        """How many labels of what each split has, logged with warnings of likely mistakes."""
        own = self.columns[name]
        counts = inspect(f"{self._file}: {name}", own.kind, table[list(own.columns)], parts, missing)
        log.info("%s: %s", name, counts)
        return counts

    def _samples(
        self,
        table: pd.DataFrame,
        values: Mapping[str, NDArray[Any]],
        parts: NDArray[Any],
        part: str,
        transform: v2.Transform,
    ) -> Samples:
        """The rows of a split: an image's name and its labels for each."""
        rows = np.flatnonzero(parts == part)
        if not len(rows):
            raise ValueError(f"{self._file} has no row for the split {part}.")
        names = table[self.image].to_numpy()
        items = [(names[row], {target: value[row] for target, value in values.items()}) for row in rows]
        return Samples(
            items, self._read, self.normalize, transform, digest(*(value[rows] for value in values.values()))
        )

    def _all_columns(self, table: pd.DataFrame, split: str | None) -> dict[str, str]:
        columns = [column for column in table.columns if column not in (self.image, split)]
        names = [target_name(column) for column in columns]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{self._file}: two columns have the target name {name}; name them in data.targets.")
        return dict(zip(names, columns, strict=True))

    def _find_images(self, table: pd.DataFrame) -> list[str]:
        """The path of every row's image; ValueError with the row where there is none."""
        names = table[self.image]
        empty = names.isna() | (names == "")
        if empty.any():
            raise ValueError(f"{self._file}, row {first_row(empty)}: {self.image} is empty.")
        names = names.astype(str)
        found = find_images(names.tolist(), self._folder)
        missing = np.array([path is None for path in found], bool)
        if missing.any():
            row = first_row(missing)
            other = find_image_column(table, self._folder)
            hint = f"; the column {other} has files: data.image={other} (--image of the command)"
            raise ValueError(
                f"{self._file}, row {row}: {self._folder / names.iloc[row - 1]} does not exist "
                f"({missing.sum()} of {len(missing)} images are missing{hint if other != self.image else ''})."
            )
        paths = [path for path in found if path is not None]
        if spelt := [pair for pair in zip(names, paths, strict=True) if pair[0] != pair[1]]:
            log.info("%s spells the images' paths otherwise: %r is read as %r", self._file, *spelt[0])
        return paths

    def _assign_splits(self, table: pd.DataFrame, split: str | None, validation: float, test: float) -> NDArray[Any]:
        """The split of every row."""
        if split is not None:
            named = table[check_column(table, split, "split", self._file)]
            if not named.isin(SPLITS).all():
                row = first_row(~named.isin(SPLITS))
                raise ValueError(
                    f"{self._file}, row {row}: {split} is {named.iloc[row - 1]}; it must be {', '.join(SPLITS)}."
                )
            return named.to_numpy(dtype=object)
        if min(validation, test) <= 0 or validation + test >= 1:
            raise ValueError(f"validation={validation} and test={test} must be above 0 and together below 1.")
        # By name and not by row: an image that has several rows is in one split.
        part_of = share_out(table[self.image].unique().tolist(), {"test": test, "val": validation}, self._file)
        return table[self.image].map(part_of).to_numpy(dtype=object)


# --------------------------------------------------------------------------- errors in the units of the table


def _is_labelled(i: int, target: Tensor) -> Tensor:
    return target[:, i].isnan().logical_not()


def _absolute(i: int, std: float, prediction: Tensor, target: Tensor) -> Tensor:
    return std * (prediction[:, i] - target[:, i]).abs()


def _squared(i: int, std: float, prediction: Tensor, target: Tensor) -> Tensor:
    return (std * (prediction[:, i] - target[:, i])).square()


# ---------------------------------------------------------------------------------------- the command


LOSSES: dict[str, dict[str, Any]] = {
    "class": {"_target_": "torch.nn.CrossEntropyLoss"},
    "labels": {"_target_": "mtl.losses.MaskedBCE"},
    "number": {"_target_": "mtl.losses.MaskedL2", "invalid": None},
}


def describe(
    root: str,
    labels: str,
    image: str | None,
    split: str | None,
    missing: Sequence[Any] | None = None,
    kinds: Mapping[str, str] | None = None,
) -> tuple[ImageTable, dict[str, str]]:
    """The data set with every usable column as a target, and the reason for every other column.

    ``kinds`` are those of targets that are not what they seem to be, by the target's name.
    """
    kinds = dict(kinds or {})
    file = find_root(root, {labels: "the labels"}, "give the table's path in it by --labels.") / labels
    table, image = read_table(file, image, missing or (), file.parents[len(Path(labels).parts) - 1])
    targets: dict[str, str] = {}
    left_out: dict[str, str] = {}
    for column in table.columns:
        if column in (image, split):
            continue
        try:
            if target_name(column) in targets:
                raise ValueError(f"{targets[target_name(column)]} already has the target name {target_name(column)}.")
            kind = kinds.get(target_name(column)) or infer(table, (column,), file)
            encode(table, target_name(column), kind, (column,), np.ones(len(table), bool), file)
            targets[target_name(column)] = column
        except ValueError as error:
            if target_name(column) in kinds:
                raise
            left_out[column] = str(error)
    while targets:
        try:
            return ImageTable(root, labels, image, targets, kinds, split=split, missing=missing), left_out
        except Untrainable as error:
            left_out[targets.pop(error.target)] = str(error)
    raise ValueError(f"{file} has no column that can be a target: {'; '.join(left_out.values())}")


def write_configuration(data: ImageTable, arguments: Mapping[str, Any], folder: Path, name: str) -> list[Path]:
    """Write {data,heads,losses}/<name>.yaml under ``folder``, for ``mtl-train -cd <folder> data=<name>``."""
    columns = data.columns.items()
    own: dict[str, Any] = {"_target_": "mtl.data.image_table.ImageTable", **arguments}
    own["targets"] = {target: column.columns[0] for target, column in columns}
    own["kinds"] = {target: column.kind for target, column in columns}
    own |= {"batch_size": data.batch_size, "image_size": data.input_info["image_size"], "augment": False}
    heads: dict[str, Any] = {"defaults": [{f"/head@{target}": "linear"} for target in data.targets]}
    heads |= {target: {"out_features": column.width} for target, column in columns}
    contents = {
        "data": own,
        "heads": heads,
        "losses": {target: dict(LOSSES[column.kind]) for target, column in columns},
    }
    files = {folder / group / f"{name}.yaml": content for group, content in contents.items()}
    for file in files:
        if file.exists():
            raise ValueError(f"{file} exists already: choose another --name, or delete the file.")
    for file, content in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        remarks = "".join(f"# {target}: {column}\n" for target, column in columns)
        file.write_text(remarks + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, default_flow_style=None))
    return list(files)


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


def _kinds(given: Sequence[str]) -> dict[str, str]:
    for text in given:
        if "=" not in text:
            raise ValueError(f"--kinds {text} must be TARGET=KIND, as in age=number.")
    return dict(text.split("=", 1) for text in given)


def main() -> None:
    """Print the inferred kinds of a table's columns, and write a configuration that trains on them."""
    parser = argparse.ArgumentParser("python -m mtl.data.image_table", description=main.__doc__)
    parser.add_argument("root", nargs="?", help="the folder with the images and the table")
    parser.add_argument("--labels", default="labels.csv", help="the table's path in that folder: .csv or .parquet")
    parser.add_argument("--image", help="the column with the images' paths; default: the first")
    parser.add_argument("--split", help="the column with train, val or test, if there is one")
    parser.add_argument("--write", type=Path, metavar="CONF", help="write the configuration into this folder")
    parser.add_argument("--name", default="mine", help="the name of the configuration; default: mine, for data=mine")
    parser.add_argument("--make-fixture", type=Path, metavar="DIR", help="write a tiny example folder and exit")
    marks = "values that mark a missing label besides an empty cell, such as -1 NA; none: there are no others"
    parser.add_argument("--missing", nargs="*", metavar="VALUE", help=marks)
    kinds = f"what a target is, where it is not what it seems to be: {', '.join(KINDS)}"
    parser.add_argument("--kinds", nargs="*", default=[], metavar="TARGET=KIND", help=kinds)
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
        data, left_out = describe(**arguments, kinds=_kinds(given.kinds))
        print(f"train {len(data.train)}, val {len(data.val)}, test {len(data.test)} rows; an image is {data.image}")
        for target, column in data.columns.items():
            named = "" if column.columns == (target,) else f" (the column {', '.join(column.columns)})"
            print(f"  {target}{named}: {column}\n    {data.counts[target]}")
        for column_name, reason in left_out.items():
            print(f"  {column_name} is left out: {reason}")
        if given.write is not None:
            files = write_configuration(data, arguments, given.write, given.name)
            print(f"Written: {', '.join(map(str, files))}. Check them, then train:")
            print(f"mtl-train -cd {given.write} data={given.name}")
    except ValueError as error:
        sys.exit(f"{parser.prog}: {error}")


if __name__ == "__main__":
    main()
