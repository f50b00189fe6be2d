"""Which columns of a table can be targets, and the configuration that trains on them; without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mtl.data.columns import Column, encode, infer
from mtl.data.folder import find_root
from mtl.data.image_sizes import size_for
from mtl.data.label_table import LabelTable
from mtl.data.table_checks import Untrainable
from mtl.data.tables import read_table
from mtl.data.target_names import target_name

LOSSES: dict[str, dict[str, Any]] = {
    "class": {"_target_": "torch.nn.CrossEntropyLoss"},
    "labels": {"_target_": "mtl.losses.MaskedBCE"},
    "number": {"_target_": "mtl.losses.MaskedL2", "invalid": None},
    "count": {"_target_": "mtl.losses.MaskedPoisson"},
}


def describe(
    root: str,
    labels: str,
    image: str | None,
    split: str | None,
    missing: Sequence[Any] | None = None,
    kinds: Mapping[str, str] | None = None,
) -> tuple[LabelTable, dict[str, str]]:
    """The data set with every usable column as a target, and the reason for every other column.

    ``kinds`` are those of targets that are not what they seem to be, by the target's name.
    """
    kinds = dict(kinds or {})
    folder = find_root(root, {labels: "the labels"}, "give the table's path in it by --labels.")
    file = folder / labels
    table, image = read_table(file, image, missing or (), folder)
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
            return LabelTable(folder, labels, image, targets, kinds, split=split, missing=missing), left_out
        except Untrainable as error:
            left_out[targets.pop(error.target)] = str(error)
    raise ValueError(f"{file} has no column that can be a target: {'; '.join(left_out.values())}")


def write_configuration(data: LabelTable, arguments: Mapping[str, Any], folder: Path, name: str) -> list[Path]:
    """Write {data,heads,losses}/<name>.yaml under ``folder`` for a table of images."""
    own: dict[str, Any] = {"_target_": "mtl.data.image_table.ImageTable", **arguments}
    own["targets"] = {target: column.columns[0] for target, column in data.columns.items()}
    own["kinds"] = {target: column.kind for target, column in data.columns.items()}
    own |= {"batch_size": 32, "image_size": size_for(data.file_size), "augment": False}
    return write_files(own, data.columns, folder, name)


def write_files(data: Mapping[str, Any], targets: Mapping[str, Column], folder: Path, name: str) -> list[Path]:
    """Write {data,heads,losses}/<name>.yaml under ``folder``, for ``mtl-train -cd <folder> data=<name>``."""
    heads: dict[str, Any] = {"defaults": [{f"/head@{target}": "linear"} for target in targets]}
    heads |= {target: {"out_features": column.width} for target, column in targets.items()}
    contents = {
        "data": data,
        "heads": heads,
        "losses": {target: dict(LOSSES[column.kind]) for target, column in targets.items()},
    }
    files = {folder / group / f"{name}.yaml": content for group, content in contents.items()}
    for file in files:
        if file.exists():
            raise ValueError(f"{file} exists already: choose another --name, or delete the file.")
    for file, content in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        remarks = "".join(f"# {target}: {column}\n" for target, column in targets.items())
        file.write_text(remarks + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, default_flow_style=None))
    return list(files)
