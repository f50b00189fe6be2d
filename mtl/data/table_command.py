"""What the commands that describe a table share: their arguments, and what they print; without torch."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtl.data import SPLITS
from mtl.data.columns import Column


def add_arguments(parser: argparse.ArgumentParser, kinds: Sequence[str]) -> None:
    """The arguments that every table has; ``kinds`` are those of a column."""
    parser.add_argument("--split", help="the column with train, val or test, if there is one")
    parser.add_argument("--write", type=Path, metavar="CONF", help="write the configuration into this folder")
    parser.add_argument("--name", default="mine", help="the name of the configuration; default: mine, for data=mine")
    parser.add_argument("--make-fixture", type=Path, metavar="DIR", help="write a tiny example folder and exit")
    marks = "values that mark a missing one besides an empty cell, such as -1 NA; none: there are no others"
    parser.add_argument("--missing", nargs="*", metavar="VALUE", help=marks)
    named = f"what a column is, where it is not what it seems to be: {', '.join(kinds)}"
    parser.add_argument("--kinds", nargs="*", default=[], metavar="NAME=KIND", help=named)


def kinds_of(given: Sequence[str]) -> dict[str, str]:
    """The kinds that ``--kinds`` names; ValueError for one without a name."""
    for text in given:
        if "=" not in text:
            raise ValueError(f"--kinds {text} must be NAME=KIND, as in age=number.")
    return dict(text.rsplit("=", 1) for text in given)


def count_rows(parts: Any) -> str:
    """How many rows each split has."""
    return ", ".join(f"{part} {(parts == part).sum()}" for part in SPLITS) + " rows"


def show_targets(columns: Mapping[str, Column], counts: Mapping[str, str]) -> None:
    """Print the targets, their kinds and their labels."""
    for target, column in columns.items():
        named = "" if column.columns == (target,) else f" (the column {', '.join(column.columns)})"
        print(f"  {target}{named}: {column}\n    {counts[target]}")


def show_left_out(left_out: Mapping[str, str]) -> None:
    """Print the columns that are of no use, and why."""
    for name, reason in left_out.items():
        print(f"  {name} is left out: {reason}")


def show_written(files: Sequence[Path], folder: Path, name: str) -> None:
    """Print which files were written, and the command that trains on them."""
    print(f"Written: {', '.join(map(str, files))}. Check them, then train:")
    print(f"mtl-train -cd {folder} data={name}")
