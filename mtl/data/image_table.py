"""A folder of images with one table of labels in CSV or Parquet: classes, binary labels and numbers."""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from numpy.typing import NDArray
from pandas.api.types import is_bool_dtype, is_numeric_dtype
from PIL import Image
from torch import Tensor
from torchmetrics import Metric
from torchvision.transforms import v2

from mtl import metrics
from mtl.data import fixtures
from mtl.data.files import Read, Samples, errors_named_by, find_root, imagenet, read_image
from mtl.data.metadata import SPLITS, digest, hash_names
from mtl.data.table_checks import Untrainable, check_labelled, how_to_name, inspect, is_mark
from mtl.errors import require_positive
from mtl.losses import IGNORED

log = logging.getLogger(__name__)

KINDS = ("class", "labels", "number")
FEW = 20  # integers with at most this many distinct values are classes


@dataclass(frozen=True)
class Column:
    """A target: its ``kind`` and its columns of the table.

    ``classes`` are the values of a class target, in the order of their indices. ``mean`` and ``std`` are the statistics
    of a number over the training rows, one per column.
    """

    kind: str
    columns: tuple[str, ...]
    classes: tuple[Any, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __str__(self) -> str:
        more = f" and {len(self.classes) - FEW} more" if len(self.classes) > FEW else ""
        return self.kind + (f" of {', '.join(map(repr, self.classes[:FEW]))}{more}" if self.classes else "")

    @property
    def width(self) -> int:
        """The number of outputs that a head needs."""
        return len(self.classes) if self.kind == "class" else len(self.columns)


class ImageTable:
    """Images and their labels, from a table with one row per image.

    ``labels`` is the table's path below ``root``. The column ``image`` (default: the first) has the images' paths below
    ``root``. ``targets`` maps a name to one column or several; by default every other column is a target. The kind of a
    target is inferred from its columns, unless ``kinds`` names it:

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

    Inputs: ``[B, 3, image_size, image_size]``, resized to a square and normalised as the backbone wants.
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
        image_size: int = 128,
        augment: bool = False,
        missing: Sequence[Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        require_positive(batch_size=batch_size, image_size=image_size)
        where = "give data.root=… the folder and data.labels=… the table in it."
        self._folder = find_root(root, {labels: "the labels"}, where)
        self._file = self._folder / labels
        wanted, known = targets, {}
        if metadata is not None:
            image, known = metadata["image"], _known_columns(metadata, targets, kinds)
            wanted = {name: column.columns for name, column in known.items()}
        table = read_table(self._file, image, missing or ())
        self.image = _check_column(table, image or table.columns[0], "image", self._file)
        self._check_images(table)
        table[self.image] = table[self.image].astype(str)
        parts = self._assign_splits(table, split, validation, test)
        wanted = wanted or self._all_columns(table, split)
        self.columns, values = self._encode_targets(table, wanted, kinds or {}, parts == "train", known)
        self.targets = tuple(self.columns)
        self.counts = {name: self._inspect(table, name, parts, missing) for name in self.targets}
        self.kinds = {name: "value" if c.kind == "number" else "class" for name, c in self.columns.items()}
        self.batch_size = batch_size
        self.input_info = {"in_channels": 3, "image_size": image_size}
        self.normalize = imagenet()
        resize: v2.Transform = v2.Resize([image_size, image_size])
        crop = v2.RandomResizedCrop([image_size, image_size], scale=(0.5, 1.0))
        training = v2.Compose([crop, v2.RandomHorizontalFlip()]) if augment else resize
        self.train, self.val, self.test = (
            self._samples(table, values, parts, part, training if part == "train" else resize) for part in SPLITS
        )
        self.metadata = {
            "image": self.image,
            "targets": {name: asdict(column) for name, column in self.columns.items()},
            "transform": {"resize": [image_size, image_size]},
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
            known, suffix = partial(_is_labelled, i), "" if column.width == 1 else f"_{_target_name(name)}"
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
            columns = tuple(_check_column(table, c, f"targets.{name}", self._file) for c in _as_list(own))
            if name in known:
                found[name], values[name] = known[name], _encode_as(known[name], table, self._file)
                continue
            kind = kinds.get(name) or infer(table, columns, self._file)
            check_labelled(str(self._file), name, table[list(columns)], train)
            found[name], values[name] = _encode(table, name, kind, columns, train, self._file)
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
        names = [_target_name(column) for column in columns]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{self._file}: two columns have the target name {name}; name them in data.targets.")
        return dict(zip(names, columns, strict=True))

    def _check_images(self, table: pd.DataFrame) -> None:
        names = table[self.image]
        if names.isna().any():
            raise ValueError(f"{self._file}, row {_first_row(names.isna())}: {self.image} is empty.")
        missing = np.array([not (self._folder / str(name)).is_file() for name in names], bool)
        if missing.any():
            row = _first_row(missing)
            raise ValueError(
                f"{self._file}, row {row}: {self._folder / str(names.iloc[row - 1])} does not exist "
                f"({missing.sum()} of {len(missing)} images are missing)."
            )

    def _assign_splits(self, table: pd.DataFrame, split: str | None, validation: float, test: float) -> NDArray[Any]:
        """The split of every row."""
        if split is not None:
            named = table[_check_column(table, split, "split", self._file)]
            if not named.isin(SPLITS).all():
                row = _first_row(~named.isin(SPLITS))
                raise ValueError(
                    f"{self._file}, row {row}: {split} is {named.iloc[row - 1]}; it must be {', '.join(SPLITS)}."
                )
            return named.to_numpy(dtype=object)
        if min(validation, test) <= 0 or validation + test >= 1:
            raise ValueError(f"validation={validation} and test={test} must be above 0 and together below 1.")
        # By name and not by row: an image that has several rows is in one split.
        part_of = share_out(table[self.image].unique().tolist(), {"test": test, "val": validation}, self._file)
        return table[self.image].map(part_of).to_numpy(dtype=object)


def share_out(names: Sequence[str], shares: Mapping[str, float], file: Path) -> dict[str, str]:
    """The split of each name, by a hash: about ``shares`` of them are held out, the others are for training.

    A name's split does not depend on the other names, unless a split would be empty: it then takes the name whose hash
    is the nearest, and a warning says so.
    """
    places = hash_names(names).numpy().view(np.uint64) / 2.0**64
    edges = np.cumsum([0.0, *shares.values(), 1 - sum(shares.values())])
    parts = [*shares, "train"]
    found = np.searchsorted(edges[1:-1], places, side="right")
    for number, part in enumerate(parts):
        counts = np.bincount(found, minlength=len(parts))
        if not counts[number] and counts.max() > 1:
            distance = np.maximum(edges[number] - places, places - edges[number + 1])
            nearest = int(np.where(counts[found] > 1, distance, np.inf).argmin())
            found[nearest] = number
            log.warning(
                "%s: the hash of the names puts none of %d images into %s, so that it takes %s; with more images that "
                "one may be in another split.", file, len(names), part, names[nearest],
            )  # fmt: skip
    return {name: parts[number] for name, number in zip(names, found, strict=True)}


# ------------------------------------------------------------------------------------------- the table


def read_table(file: Path, image: str | None = None, missing: Sequence[Any] = ()) -> pd.DataFrame:
    """Read a table of labels, with the column ``image`` (default: the first) as text.

    In a CSV file, only an empty cell, NaN and the values in ``missing`` are missing labels, because None and NA may be
    names of classes.
    """
    marks = [mark for value in missing for mark in _spellings("null" if value is None else value)]
    readers = {".csv": _read_csv, ".parquet": _read_parquet}
    if file.suffix not in readers:
        raise ValueError(f"labels={file.name} must end in {' or '.join(readers)}.")
    with errors_named_by(file):
        table = readers[file.suffix](file, image, marks).reset_index(drop=True)
        if not len(table):
            raise ValueError("it has no rows")
        return table.set_axis([str(column) for column in table.columns], axis=1)


def _spellings(mark: Any) -> list[Any]:
    """A mark as it may stand in a column of texts and in one of numbers."""
    number = pd.to_numeric(mark, errors="coerce")
    return [str(mark)] if pd.isna(number) else [str(mark), float(number)]


def _read_csv(file: Path, image: str | None, marks: Sequence[Any]) -> pd.DataFrame:
    texts = pd.read_csv(file, keep_default_na=False, dtype=str)
    name = image or str(texts.columns[0])
    gaps = ["", "nan", "NaN"]
    empty = {column: [*gaps, *(() if column == name else marks)] for column in texts}
    for column in texts:  # a mark with spaces around it is one too
        empty[column] += [text for text in texts[column].unique() if text.strip() in empty[column]]
    return pd.read_csv(file, keep_default_na=False, na_values=empty, dtype={name: str})


def _read_parquet(file: Path, image: str | None, marks: Sequence[Any]) -> pd.DataFrame:
    table = pd.read_parquet(file)
    for column in table.columns:
        if column != (image or table.columns[0]):
            bare = table[column].map(lambda value: value.strip() if isinstance(value, str) else value)
            table[column] = table[column].mask(bare.isin(["", *marks]))
    return table


def infer(table: pd.DataFrame, columns: Sequence[str], file: Path) -> str:
    """The kind of a target with these columns; ValueError if they are ambiguous."""
    values = [table[column].dropna() for column in columns]
    for column, own in zip(columns, values, strict=True):
        if not len(own):
            raise ValueError(f"{file}: the column {column} is empty.")
    if len(columns) > 1:
        if all(own.isin([0, 1]).all() for own in values):
            return "labels"
        if all(is_numeric_dtype(own) for own in values):
            return "number"
        raise ValueError(f"{file}: the columns {', '.join(columns)} are neither all 0 and 1 nor all numbers.")
    (own,), (column,) = values, columns
    if is_numeric_dtype(own) and not is_bool_dtype(own):
        whole = bool((own % 1 == 0).all())
        return "class" if whole and own.nunique() <= FEW else "number"
    is_number = pd.to_numeric(own, errors="coerce").notna() if not _is_boolean(own) else pd.Series(False, own.index)
    if is_number.mean() > 0.5:
        row = own.index[~is_number][0]
        remedy = f"; if it marks a missing label, {how_to_name([own[row]])}" if is_mark(own[row]) else ""
        raise ValueError(
            f"{file}, row {row + 1}: {column} is {own[row]}, but most values of this column are numbers{remedy}."
        )
    if len(own) > FEW and own.nunique() > len(own) / 2:
        raise ValueError(
            f"{file}: {column} has {own.nunique()} different texts in {len(own)} rows, too many for classes; name the "
            "columns that are targets, as in data.targets={breed: breed}."
        )
    return "class"


def _encode(
    table: pd.DataFrame, name: str, kind: str, columns: tuple[str, ...], train: NDArray[np.bool_], file: Path
) -> tuple[Column, NDArray[Any]]:
    """A target and its value in every row."""
    if kind not in KINDS:
        raise ValueError(f"kinds.{name}={kind} must be one of {', '.join(KINDS)}.")
    if kind == "class":
        if len(columns) > 1:
            raise ValueError(
                f"targets.{name}={list(columns)}: a class has one column; for several, use labels or number."
            )
        own = table[columns[0]]
        classes = sorted(own.dropna().unique().tolist(), key=lambda value: (isinstance(value, str), value))
        if len(classes) < 2:
            raise ValueError(f"{file}: {columns[0]} has {len(classes)} different values; a class needs two or more.")
        codes = pd.Categorical(own, categories=classes).codes.astype(np.int64)
        plain = (
            int(v) if isinstance(v, float) and v.is_integer() else v if isinstance(v, str | int | float) else str(v)
            for v in classes
        )  # an integer column with an empty cell is read as floats; and a checkpoint holds no dates
        return Column(kind, columns, tuple(plain)), np.where(codes < 0, IGNORED, codes)
    values = np.stack([_numbers(table[column], kind, file) for column in columns], 1)
    if kind == "labels":
        return Column(kind, columns), values.astype(np.float32)
    known = ~np.isnan(values[train])
    for column, own, seen in zip(columns, values[train].T, known.T, strict=True):
        if not own[seen].size or not own[seen].std():
            raise Untrainable(name, f"{file}: {column} is constant in the training rows, so it cannot be learnt.")
    mean, std = np.nanmean(values[train], 0), np.nanstd(values[train], 0)
    scaled = ((values - mean) / std).astype(np.float32)
    return Column(kind, columns, (), tuple(mean.tolist()), tuple(std.tolist())), scaled


def _encode_as(column: Column, table: pd.DataFrame, file: Path) -> NDArray[Any]:
    """A target's value in every row, with the classes and statistics of the run that ``column`` comes from."""
    if column.kind == "class":
        own = table[column.columns[0]]
        index = {str(value): i for i, value in enumerate(column.classes)} | {v: i for i, v in enumerate(column.classes)}
        codes = np.array([index.get(value, index.get(str(value), -1)) for value in own.tolist()], np.int64)
        codes[own.isna()] = IGNORED
        if (codes == -1).any():
            row = _first_row(codes == -1)
            raise ValueError(
                f"{file}, row {row}: {own.name} is {own.iloc[row - 1]}, a class that the model does not know; its "
                f"classes are {', '.join(map(str, column.classes))}."
            )
        return codes
    values = np.stack([_numbers(table[name], column.kind, file) for name in column.columns], 1)
    if column.kind == "number":
        values = (values - np.array(column.mean)) / np.array(column.std)
    return values.astype(np.float32)


def _known_columns(
    metadata: Mapping[str, Any], targets: Mapping[str, str | Sequence[str]] | None, kinds: Mapping[str, str] | None
) -> dict[str, Column]:
    """The targets in another run's metadata; ValueError if ``targets`` or ``kinds`` are given and differ from them."""
    known = {
        name: Column(own["kind"], *(tuple(own[key]) for key in ("columns", "classes", "mean", "std")))
        for name, own in metadata["targets"].items()
    }
    asked = {name: tuple(_as_list(own)) for name, own in (targets or {}).items()}
    if asked and asked != {name: column.columns for name, column in known.items()}:
        raise ValueError(f"targets={asked} are not those that the model was trained with: {', '.join(known)}.")
    for name, kind in (kinds or {}).items():
        if name in known and known[name].kind != kind:
            raise ValueError(f"kinds.{name}={kind}, but the model was trained with {known[name].kind}.")
    return known


def _numbers(own: pd.Series, kind: str, file: Path) -> NDArray[np.float64]:
    """A column as numbers, NaN if missing; ValueError with the row for text, infinity, or a label besides 0 and 1."""
    numbers = own.astype(float) if _is_boolean(own.dropna()) else pd.to_numeric(own, errors="coerce").astype(float)
    fine = numbers.isin([0, 1]) if kind == "labels" else np.isfinite(numbers)
    wrong = own.notna() & ~fine
    if wrong.any():
        row = _first_row(wrong)
        accepted = "0, 1" if kind == "labels" else "a finite number"
        raise ValueError(f"{file}, row {row}: {own.name} is {own.iloc[row - 1]}; it must be {accepted} or empty.")
    return numbers.to_numpy(np.float64)


def _is_boolean(own: pd.Series) -> bool:
    return is_bool_dtype(own) or (own.dtype == object and all(isinstance(value, bool) for value in own))


def _check_column(table: pd.DataFrame, column: str, key: str, file: Path) -> str:
    if column not in table.columns:
        raise ValueError(f"{key}={column} is no column of {file}; its columns are {', '.join(table.columns)}.")
    return column


def _first_row(wrong: Any) -> int:
    """The number of the first true row, counted from 1 below the header."""
    return int(np.flatnonzero(np.asarray(wrong))[0]) + 1


def _as_list(columns: str | Sequence[str]) -> list[str]:
    return [columns] if isinstance(columns, str) else list(columns)


def _target_name(column: str) -> str:
    """The column's name as a task name, which has letters, digits, _ and - only."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", column).strip("_") or "column"


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
    root: str, labels: str, image: str | None, split: str | None, missing: Sequence[Any] | None = None
) -> tuple[ImageTable, dict[str, str]]:
    """The data set with every usable column as a target, and the reason for every other column."""
    file = find_root(root, {labels: "the labels"}, "give the table's path in it by --labels.") / labels
    table = read_table(file, image, missing or ())
    targets: dict[str, str] = {}
    left_out: dict[str, str] = {}
    for column in table.columns:
        if column in (image or table.columns[0], split):
            continue
        try:
            if _target_name(column) in targets:
                raise ValueError(f"{targets[_target_name(column)]} already has the target name {_target_name(column)}.")
            _encode(table, column, infer(table, (column,), file), (column,), np.ones(len(table), bool), file)
            targets[_target_name(column)] = column
        except ValueError as error:
            left_out[column] = str(error)
    while targets:
        try:
            return ImageTable(root, labels, image, targets, split=split, missing=missing), left_out
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
        data, left_out = describe(**arguments)
        print(f"train {len(data.train)}, val {len(data.val)}, test {len(data.test)} rows; an image is {data.image}")
        for target, column in data.columns.items():
            print(f"  {target}: {column}\n    {data.counts[target]}")
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
