"""A table as inputs and targets: what its columns become, and which row is in which split."""

import sys

import numpy as np
import pandas as pd
import pytest
import torch
from support.exactness import assert_same, differing
from support.tables import everything, rows_of

from mtl.config import check, load
from mtl.config.table_heads import take_targets
from mtl.data.metadata import describe
from mtl.data.table import Table
from mtl.data.table import main as table_main
from mtl.data.table_rows import Rows

TARGETS = ["basket", "amount", "again"]
N = 60


def test_the_command_that_the_tiny_table_comes_with_has_all_that_it_needs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["table.py", "--make-fixture", str(tmp_path / "shop")])
    table_main()
    command = capsys.readouterr().out.split("mtl-train ")[1].split()
    config = load(command)
    take_targets(config)
    check(config)
    assert [*config.heads] == TARGETS


def test_every_column_becomes_what_pandas_says_of_the_training_rows(shop):
    data = Table(str(shop), TARGETS)
    train_rows, test_rows = rows_of(data, shop), rows_of(data, shop, "test")
    inputs, targets = everything(data.test)
    days, seen = (pd.to_datetime(rows["day"]) for rows in (test_rows, train_rows))
    dates = [(getattr(days.dt, part), getattr(seen.dt, part)) for part in ("month", "day_of_week", "day_of_year")]
    columns = [(now - then.mean()) / then.std(ddof=0) for now, then in dates]
    age = (test_rows["age"] - train_rows["age"].mean()) / train_rows["age"].std(ddof=0)
    expected = [*columns, days.isna(), age, age.isna()]
    assert train_rows["age"].isna().any() and train_rows["day"].isna().any(), "so that they have an indicator"
    stacked = np.nan_to_num(np.stack([own.astype(float) for own in expected], 1))
    np.testing.assert_allclose(inputs["numbers"], stacked, atol=1e-5)
    cities = {city: i for i, city in enumerate(sorted(train_rows["city"].dropna().unique()), 1)}
    members = {"False": 1, "True": 2}
    codes = [test_rows["city"].map(cities), test_rows["member"].map(lambda m: members.get(str(m)))]
    assert inputs["categories"].tolist() == np.stack([own.fillna(0) for own in codes], 1).astype(int).tolist()
    assert inputs["numbers"].dtype == torch.float32 and inputs["categories"].dtype == torch.int64
    assert data.input_info == {"numbers": 6, "categories": [4, 3]}
    baskets = test_rows["basket"].map({"bread": 0, "fruit": 1, "wine": 2}).fillna(-100).astype(int)
    assert targets["basket"].tolist() == baskets.tolist()
    amount = (test_rows["amount"] - train_rows["amount"].mean()) / train_rows["amount"].std(ddof=0)
    np.testing.assert_allclose(targets["amount"][:, 0], amount, rtol=1e-5, equal_nan=True)


@pytest.mark.parametrize("form", ["parquet", "cache", "cache, again", "a row a time", "a frame", "state", "semicolons"])
def test_every_way_to_read_gives_the_same_to_the_last_bit(shop, tmp_path, form):
    data = Table(str(shop), TARGETS)
    text = pd.read_csv(shop / "table.csv", keep_default_na=False, na_values=[""])
    expected = {part: everything(getattr(data, part)) for part in ("train", "val", "test")}
    if form in ("a row a time", "a frame", "state"):
        rows = rows_of(data, shop, "test")
        made = Rows(**{k: v for k, v in data.preprocess.state().items() if k != "_target_"}) if form == "state" else (
            data.preprocess)  # fmt: skip
        if form == "a frame":
            found = made.batch(rows)
        else:
            each = [made({name: None if pd.isna(v) else v for name, v in row.items()}) for _, row in rows.iterrows()]
            found = {name: torch.stack([one[name] for one in each]) for name in each[0]}
        assert differing(found, expected["test"][0]) == []
        changed = rows.assign(age=rows["age"] + 1)
        assert differing(made.batch(changed), expected["test"][0]), "the negative control"
        return
    arguments = {}
    if form == "parquet":
        text.to_parquet(shop / "table.parquet")
        arguments["file"] = "table.parquet"
    elif form == "semicolons":
        text.to_csv(shop / "other.csv", index=False, sep=";", decimal=",", encoding="utf-16")
        arguments["file"] = "other.csv"
    else:
        arguments["cache"] = str(tmp_path / "cache")
        for _ in range(form == "cache, again"):
            Table(str(shop), TARGETS, **arguments)
    again = Table(str(shop), TARGETS, **arguments)
    if "cache" in arguments:
        folders = {own.resolve() for own in (tmp_path / "cache").iterdir() if own.is_dir()}
        Table(str(shop), TARGETS, metadata=describe(again)["metadata"], **arguments)
        assert {own.resolve() for own in (tmp_path / "cache").iterdir() if own.is_dir()} == folders and len(
            folders
        ) == 1
    assert again.metadata == data.metadata and again.train.digest == data.train.digest
    assert_same(expected, {part: everything(getattr(again, part)) for part in expected})


KINDS = {
    "text": (["a", "b", "c"] * 20, "category"),
    "truth": ([True, False, False] * 20, "category"),
    "few integers": ([1, 2, 3] * 20, "category"),
    "numbers": ([i / 7 for i in range(N)], "number"),
    "many integers": ([3 * i for i in range(N)], "number"),
    "dates": ([f"2024-{1 + i % 12:02}-05" for i in range(N)], "date"),
    "times": ([f"2024-01-05 {i % 24:02}:30:00" for i in range(N)], "date"),
    "German dates": ([f"{1 + i % 28}.03.2024" for i in range(N)], "date"),
    "American dates": ([f"01/{13 + i % 12}/2024" for i in range(N)], "date"),
    "names": ([f"name {i}" for i in range(N)], None),
    "free text": ([f"some words {i % 40}" for i in range(N)], None),
    "one value": (["x"] * N, None),
    "one number": ([0.1] * N, None),
    "nothing": ([None] * N, None),
    "lists of words": ([f"a{i};b{i}" for i in range(N)], None),
}


@pytest.mark.parametrize("name", ["table.csv", "table.parquet"])
@pytest.mark.parametrize("case", KINDS)
def test_what_an_input_is_taken_for(write, caplog, case, name):
    values, kind = KINDS[case]
    data = Table(write(name, x=values, other=np.arange(N) / 3.0), ["y"], file=name)
    kinds = {column.name: column.kind for column in data.preprocess.inputs}
    assert kinds.get("x") == kind
    warned = [record.getMessage() for record in caplog.records if "left out of the inputs" in record.getMessage()]
    assert bool(warned) == (kind is None) and all(text.startswith("x is left out") for text in warned)


def test_a_kind_that_is_given_comes_before_what_it_seems_to_be(write):
    root = write(x=[1, 2, 3] * 20, n=[f"name {i}" for i in range(N)])
    data = Table(root, ["y", "z"], kinds={"x": "number", "n": "category", "z": "number"})
    assert [column.kind for column in data.preprocess.inputs] == ["number", "category"]
    assert data.columns["z"].kind == "number"


def test_a_time_has_an_hour_and_parts_that_do_not_vary_are_none(write):
    data = Table(write(x=KINDS["times"][0]), ["y", "z"])
    assert data.preprocess.inputs[0].parts == ("hour",)


@pytest.mark.parametrize("value", ["Rome", None, "", "  ", float("nan")])
def test_a_value_that_no_training_row_has_is_the_first(shop, value):
    row = {"day": "2024-05-01", "city": "Bonn", "age": 30, "member": True}
    preprocess = Table(str(shop), TARGETS).preprocess
    assert preprocess(row)["categories"].tolist() == [1, 2]
    assert preprocess(row | {"city": value})["categories"].tolist() == [0, 2]
    frame = pd.DataFrame([row | {"city": value}] * 2)
    assert preprocess.batch(frame)["categories"].tolist() == [[0, 2]] * 2
    same_row = {"day": "2024-05-01", "city": "Bonn", "age": "30.0", "member": "true", "unknown column": 1}
    assert_same(preprocess(row), preprocess(same_row))


def test_texts_that_mean_something_to_hydra_are_texts(write):
    data = Table(write(x=["???", "${a}", "b"] * 20), ["y", "z"])
    assert data.preprocess.inputs[0].values == ("${a}", "???", "b")
    assert describe(data)["preprocess"]["inputs"][0]["values"] == ["${a}", "???", "b"]


# -------------------------------------------------------------------------------------------------------- splits


def places(data):
    """The split of every row, by its number."""
    return {part.path(i).rpartition(" ")[2]: name for name in ("train", "val", "test")
            for part in [getattr(data, name)] for i in range(len(part))}  # fmt: skip


def test_equal_rows_are_in_one_split_whatever_the_other_rows_and_columns_order(write, tmp_path):
    root = write(rows=300, x=np.arange(300) // 3, w=np.arange(300) / 7)
    table = pd.read_csv(tmp_path / "table.csv")
    before = places(Table(root, ["y"]))
    shares = [list(before.values()).count(part) / 300 for part in ("train", "val", "test")]
    np.testing.assert_allclose(shares, [0.7, 0.15, 0.15], atol=0.06)
    pd.concat([table, table[:100]])[["w", "z", "x", "y"]].to_csv(tmp_path / "more.csv", index=False)
    after = places(Table(root, ["y"], file="more.csv"))
    assert {row: after[row] for row in before} == before
    assert all(after[str(2 + 300 + i)] == before[str(2 + i)] for i in range(100))
    table.assign(w=table["w"] + 1).to_csv(tmp_path / "other.csv", index=False)
    assert places(Table(root, ["y"], file="other.csv")) != before, "the negative control"


def test_a_key_keeps_its_rows_in_one_split(write):
    customers = [f"c{i // 4}" for i in range(400)]
    data = Table(write(rows=400, x=np.arange(400) / 7, customer=customers), ["y"], key="customer")
    found = places(data)
    assert all(len({found[str(2 + 4 * i + k)] for k in range(4)}) == 1 for i in range(100))
    assert "customer" not in data.preprocess.columns
    free = places(Table(write(rows=400, x=np.arange(400) / 7, customer=customers), ["y"]))
    assert any(len({free[str(2 + 4 * i + k)] for k in range(4)}) > 1 for i in range(100)), "the negative control"


def test_splits_may_be_a_column_or_files(write, tmp_path):
    part = ["train"] * 40 + ["val"] * 8 + ["test"] * 12
    root = write(x=np.arange(N) / 7, part=part)
    data = Table(root, ["y"], split="part")
    table = pd.read_csv(tmp_path / "table.csv")
    for name in ("train", "val", "test"):
        table[table["part"] == name].drop(columns="part").to_csv(tmp_path / f"{name}.csv", index=False)
    files = Table(root, ["y"], file={name: f"{name}.csv" for name in ("train", "val", "test")})
    for name in ("train", "val", "test"):
        assert_same(everything(getattr(data, name)), everything(getattr(files, name)))
    two = Table(root, ["y"], file={"train": "train.csv", "test": "test.csv"})
    assert len(two.test) == 12 and 0 < len(two.val) < 20 and len(two.train) + len(two.val) == 40
    assert files.val.path(0) == f"{tmp_path}/val.csv, row 2"
