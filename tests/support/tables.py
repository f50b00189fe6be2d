"""The rows of a table's splits, as the data set has them and as they stand in the file."""

from pathlib import Path

import pandas as pd


def everything(part):
    return part.batch(range(len(part)), 0)


def rows_of(data, root, part="train"):
    """The rows of a split as they stand in the file."""
    table = pd.read_csv(Path(root) / "table.csv", keep_default_na=False, na_values=[""])
    own = getattr(data, part)
    return table.iloc[[int(own.path(i).rpartition(" ")[2]) - 2 for i in range(len(own))]]
