"""What a report calls the data of a run."""

import pytest

from mtl.report.compare import compare
from mtl.report.runs import Run

TABLE = {"_target_": "mtl.data.image_table.ImageTable", "root": "/data/my pets/"}
TABLES = {"_target_": "mtl.data.domain_tables.DomainTables", "root": ".", "files": {"paris": "a.csv", "rome": "b.csv"}}
OWN = {"_target_": "mtl.data.dataset.OwnDataset", "dataset": {"_target_": "mine.Blots"}}


@pytest.mark.parametrize(
    ("data", "overrides", "expected"),
    [
        (TABLE, ["data=mine"], "mine"),
        (TABLE, ["data=mine", "seed=1", "data=other"], "other"),
        (TABLE, ["data=image_table", "data.root=…"], "my pets"),
        (TABLE | {"root": ""}, [], "ImageTable"),
        ({"_target_": "mtl.data.table.Table", "root": "/data/shop"}, ["data=table"], "shop"),
        (TABLES, ["data=domain_tables"], "paris, rome"),
        (TABLES | {"root": "/data/flats"}, ["data=domain_tables"], "flats"),
        (OWN, ["data=blots"], "blots"),
        (OWN, ["data=dataset"], "Blots"),
        (OWN, [], "Blots"),
        ({"_target_": "mtl.data.digits.Digits"}, ["data=digits"], "Digits"),
        ({}, [], ""),
    ],
)
def test_own_data_are_called_what_their_user_calls_them(tmp_path, data, overrides, expected):
    assert Run(tmp_path, config={"data": data}, overrides=overrides).data == expected


def test_two_own_tables_are_not_compared_with_each_other(tmp_path):
    runs = [Run(tmp_path, config={"data": TABLE}, overrides=[f"data={name}"]) for name in ("pets", "birds", "pets")]
    assert [comparison.data for comparison in compare(runs)] == ["pets", "birds"]
