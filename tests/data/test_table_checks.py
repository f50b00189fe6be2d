"""Marks of missing labels, near-duplicates of classes and targets that a split lacks: warned of by name."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mtl.data.image_table import ImageTable
from mtl.data.table_checks import Untrainable
from mtl.data.table_configuration import describe

N = 40
PARTS = (["train"] * 20 + ["val"] * 10 + ["test"] * 10) * (N // 40)


@pytest.fixture
def table(tmp_path, caplog):
    """A data set of one column of these cells, repeated over the rows, and what was warned of."""
    for i in range(N):
        Image.new("L", (4, 4), i).save(tmp_path / f"{i}.png")

    def make(*cells, name="labels.csv", column="a", **arguments):
        values = [cells[i % len(cells)] for i in range(N)]
        frame = pd.DataFrame({"file": [f"{i}.png" for i in range(N)], column: values, "part": PARTS})
        frame.to_csv(tmp_path / name, index=False) if name.endswith("csv") else frame.to_parquet(tmp_path / name)
        caplog.clear()
        data = ImageTable(str(tmp_path), name, targets={"a": column}, split="part", **arguments)
        return data, [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]

    return make


MARKS = ["NA", "na", "N/A", "null", "None", "none", "?", "-", "unknown", " NA ", "-999"]


@pytest.mark.parametrize("name", ["labels.csv", "labels.parquet"])
@pytest.mark.parametrize("mark", MARKS)
def test_a_text_that_looks_like_a_mark_is_warned_of_and_named_as_one(table, mark, name):
    data, (warning,) = table("red", "green", mark, "blue", name=name)
    assert mark in data.columns["a"].classes, "it is not dropped"
    assert f"a: {mark!r} in 10 rows looks like the mark of a missing label; data.missing=[{mark.strip()}]" in warning
    named, warnings = table("red", "green", mark, "blue", name=name, missing=[mark.strip()])
    assert named.columns["a"].classes == ("blue", "green", "red") and not warnings
    assert "missing 10" in named.counts["a"] and sum(t["a"] == -100 for _, t in _samples(named)) == 10
    kept, warnings = table("red", "green", mark, "blue", name=name, missing=[])
    assert len(kept.columns["a"].classes) == 4 and not warnings


@pytest.mark.parametrize("name", ["labels.csv", "labels.parquet"])
@pytest.mark.parametrize("blank", ["", " ", "\t", "\u00a0"])
def test_a_cell_of_spaces_is_empty(table, blank, name):
    data, warnings = table("red", "green", blank, "blue", name=name)
    assert data.columns["a"].classes == ("blue", "green", "red") and "missing 10" in data.counts["a"] and not warnings


def test_a_mark_with_spaces_leaves_a_column_of_numbers_one(table):
    data, warnings = table(0.5, " NA ", 1.5, 2.25, missing=["NA"])
    assert data.columns["a"].kind == "number" and "missing 10" in data.counts["a"] and not warnings


def _samples(data):
    return [split[i] for split in (data.train, data.val, data.test) for i in range(len(split))]


@pytest.mark.parametrize("name", ["labels.csv", "labels.parquet"])
@pytest.mark.parametrize(
    ("cells", "mark"),
    [
        ((0, 1, 2, -1), -1), ((0, 1, -1), -1), ((0, 1, 2, 255), 255), ((1, 2, 3, 999), 999), ((1, 2, -99), -99),
        ([*np.linspace(0.5, 9, 19), -1], -1), ([*np.linspace(-9, 9, 19), -999], -999), ([*range(30, 69), 9999], 9999),
    ],
)  # fmt: skip
def test_a_number_that_looks_like_a_mark_is_warned_of_and_named_as_one(table, cells, mark, name):
    data, (warning,) = table(*cells, name=name)
    assert f"a: {mark} in " in warning and f"data.missing=[{mark}]" in warning
    for given in (mark, str(mark)):
        named, warnings = table(*cells, name=name, missing=[given])
        assert named.columns["a"].width == data.columns["a"].width - (data.columns["a"].kind == "class")
        assert not warnings and "missing 0" not in named.counts["a"]


@pytest.mark.parametrize(
    "cells",
    [
        (-1, 1), (-2, -1, 0, 1, 2), (0, 1, 2), (97, 98, 99, 100), ("red", "green", "other"), ("a", "b", "A", "B"),
        ("1a", "1b", "2"), ("dark red", "darkred"), ("nathan", "dash-ed", "unknown soldier"), (True, False),
        [*np.linspace(-3, 3, 20), -1.0], [*range(90, 110), 99], [*range(960, 1040), 999],
        (0.0, 0.5, 1.0, None),
    ],
)  # fmt: skip
def test_what_is_right_is_not_warned_of(table, cells):
    assert table(*cells)[1] == []


@pytest.mark.parametrize(
    "cells",
    [
        ("circle", " circle", "square"), ("circle", "Circle", "square"), ("circle", "circle ", "square"),
        ("caf\u00e9", "cafe\u0301", "bar"), ("dark red", "dark_red", "blue"), ("dark red", "dark  red", "blue"),
        ("red", "RED", "blue"),
    ],
)  # fmt: skip
def test_spellings_of_one_class_are_warned_of(table, cells):
    data, (warning,) = table(*cells)
    assert len(data.columns["a"].classes) == 3
    assert f"{cells[0]!r} in 14 rows" in warning and f"{cells[1]!r} in 13 rows" in warning
    assert "look like one class that is spelt in 2 ways" in warning


def test_numbers_and_booleans_as_texts_are_spellings_as_well(table):
    _, (warning,) = table("1", "1.0", "x", "y", "z")
    assert "'1' in 8 rows, '1.0' in 8 rows" in warning
    _, (warning,) = table("true", "True", "maybe")
    assert "'true' in 14 rows, 'True' in 13 rows" in warning


def test_a_mark_among_numbers_is_named_with_its_remedy(table):
    cells = [*np.linspace(0, 3, 39).round(2).tolist(), "NA"]
    with pytest.raises(ValueError, match=r"row 41: a is NA, but most .* missing label, data.missing=\[NA\]"):
        table(*cells)
    data, warnings = table(*cells, missing=["NA"])
    assert data.columns["a"].kind == "number" and not warnings


def test_what_training_cannot_learn_is_said_before_it_starts(table):
    with pytest.raises(Untrainable, match=r"labels.csv: a has no label in the training rows, so it cannot be learnt"):
        table(*[None] * 20, *"xyxyxyxyxyxyxyxyxyxy")
    _, (warning,) = table(*"xyxyxyxyxyxyxyxyxyxy", *"xyxyxyxyxz", *"xyxyxyxyxy")
    assert "a: no training row has the class 'z', so that it cannot be learnt but is tested" in warning
    _, (warning,) = table(*"xyxyxyxyxyxyxyxyxyxy", *[None] * 10, *"xyxyxyxyxy")
    assert "a has no label in val, so that its metrics have no value there" in warning


def test_the_command_leaves_out_what_cannot_be_learnt(table, tmp_path):
    data, _ = table(*"xy")
    file = Path(tmp_path) / "labels.csv"
    frame = pd.read_csv(file)
    frame["late"] = [None] * 20 + ["x", "y"] * 10
    frame["flat"] = [1.5] * 20 + list(np.linspace(0, 1, 20))
    frame.to_csv(file, index=False)
    data, left_out = describe(str(tmp_path), "labels.csv", None, "part")
    assert [*data.columns] == ["a"] and list(left_out) == ["late", "flat"]
    assert "late has no label in the training rows" in left_out["late"] and "flat is constant" in left_out["flat"]


def test_counts_by_class_and_split_are_logged(table, caplog):
    caplog.set_level("INFO")
    data, _ = table("x", "y", "x", None)
    expected = "labels: train 15 ('x': 10, 'y': 5), val 8 ('x': 5, 'y': 3), test 7 ('x': 5, 'y': 2); missing 10"
    assert data.counts["a"] == expected and f"a: {expected}" in caplog.text
    data, _ = table(*range(40), missing=[])
    assert data.counts["a"] == "labels: train 20 (a 0 to 19), val 10 (a 20 to 29), test 10 (a 30 to 39); missing 0"
    data, _ = table(0, 1, 1, kinds={"a": "labels"}, missing=[])
    assert "train 20 (a 13 of 20)" in data.counts["a"]
