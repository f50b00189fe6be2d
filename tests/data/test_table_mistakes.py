"""A table with mistakes: inputs that give a target away, and a sentence for all that cannot be read."""

import numpy as np
import pytest

from mtl.data import table_cache
from mtl.data.table import Table

TARGETS = ["basket", "amount", "again"]
N = 60


def leaks(caplog):
    return [record.getMessage() for record in caplog.records if "gives the target" in record.getMessage()]


@pytest.mark.parametrize("case", ["copy", "scaled", "curved", "class", "missing"])
def test_an_input_that_gives_a_target_away_is_named_with_the_value(write, caplog, tmp_path, case):
    rng = np.random.default_rng(1)
    x, c = rng.normal(size=2000), rng.integers(0, 4, 2000)
    y = x if case in ("copy", "scaled", "curved") else c % 2 if case == "missing" else c
    leak = {"copy": x, "scaled": 3 - 2 * x + 0.01 * rng.normal(size=2000), "curved": np.exp(x), "class": 10 * c + 5,
            "missing": np.where(c % 2 == 0, np.nan, rng.normal(size=2000))}[case]  # fmt: skip
    root = write(rows=2000, y=y, z=None, leak=leak, fine=rng.normal(size=2000))
    Table(root, ["y"], kinds={"leak": "number"} if case == "missing" else None)
    (warning,) = leaks(caplog)
    assert "the input leak gives the target y away" in warning and "data.exclude=[leak]" in warning
    caplog.clear()
    Table(root, ["y"], exclude=["leak"])
    assert not leaks(caplog), "the negative control"


def test_inputs_that_tell_much_or_have_a_value_a_row_give_nothing_away(write, caplog):
    rng = np.random.default_rng(1)
    x = rng.normal(size=2000)
    rare = (rng.random(2000) < 0.005).astype(int)
    Table(write(rows=2000, y=x + 0.3 * rng.normal(size=2000), z=rare, x=x, i=rng.permutation(2000)), ["y", "z"])
    assert not leaks(caplog)


NUMBERS = list(np.arange(N) / 7)
MISTAKES = {
    "no target": (dict(x=NUMBERS), dict(targets=[]), "names no target; the columns of {file} are y, z, x."),
    "target misspelt": (dict(colour=NUMBERS), dict(targets=["color"]),
                        "targets=color is no column of {file}; did you mean colour?"),
    "exclude misspelt": (dict(colour=NUMBERS), dict(exclude=["color"]), "exclude=color is no column of {file}; did"),
    "a target as an input": (dict(x=NUMBERS), dict(inputs=["x", "y"]), "inputs=y is a target"),
    "no input": ({}, dict(targets=["y", "z"]), "has no column that can be an input, beside the targets."),
    "an input that is none": (dict(x=["a"] * N), dict(inputs=["x"]), "inputs=x cannot be an input: it is a in every"),
    "infinity": (dict(x=[*NUMBERS[:-1], np.inf]), {}, "row 61: x is inf; it must be a finite number or empty."),
    "text among numbers": (dict(x=[*NUMBERS[:-1], "much"]), {}, "row 61: x is much, but most values of this column"),
    "mixed dates": (dict(x=["2024-01-05", "2024-02-06", "7.3.2024"] * 20), {}, "row 4: x is 7.3.2024, but most"),
    "day or month": (dict(x=["01/02/2024", "02/03/2024"] * 30), {}, "x has dates as 01/02/2024, of which the day or"),
    "one class in training": (dict(a=["no"] * 40 + ["yes"] * 20, part=["train"] * 40 + ["val", "test"] * 10, x=NUMBERS),
                              dict(targets=["a"], split="part"), "a is 'no' in every training row that has a label"),
    "negative count": (dict(n=[1, 2, -1] * 20), dict(targets=["n"], kinds={"n": "count"}),
                       "row 4: n is -1; it must be a whole number from 0 on"),
    "another kind": (dict(x=NUMBERS), dict(kinds={"x": "labels"}), "kinds.x=labels must be one of number, category,"),
    "a kind of nothing": (dict(x=NUMBERS), dict(kinds={"w": "number"}), "kinds.w names neither a target nor an input"),
    "no file of that split": (dict(x=NUMBERS), dict(file={"train": "table.csv", "dev": "table.csv"}),
                              "file.dev is no split"),
    "a file that ends otherwise": (dict(x=NUMBERS), dict(file="table.xlsx"),
                                   "lacks table.xlsx (the table; did you mean table.csv?): give data.root="),
    "too far": (dict(x=[*NUMBERS[:-1], 1e300], part=["train"] * 40 + ["val", "test"] * 10), dict(split="part"),
                "row 61: x is 1e+300, too far from the other rows for a number"),
    "target too far": (dict(t=[*NUMBERS[:-1], 1e300], part=["train"] * 40 + ["val", "test"] * 10, x=NUMBERS),
                       dict(targets=["t"], split="part"), "row 61: t is 1e+300, too far from the other rows"),
    "dates in two ways": (dict(x=[f"2024-01-{1 + i:02}" if i < 30 else f"{i - 29}.2.2024" for i in range(N)]), {},
                          "row 32: x is 1.2.2024, but other values of this column are dates as 2024-01-01."),
    "shares": (dict(x=NUMBERS), dict(validation=0.6, test=0.5), "validation=0.6 and test=0.5 must be above 0"),
    "key": (dict(x=NUMBERS), dict(key="customer"), "key=customer is no column of {file}"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_sentence(write, case):
    columns, arguments, words = MISTAKES[case]
    root = write(**columns)
    with pytest.raises(ValueError) as caught:
        Table(root, **{"targets": ["y"], **arguments})
    message = str(caught.value)
    assert words.format(file=f"{root}/table.csv") in message and "\n" not in message


@pytest.mark.parametrize("cached", [False, True], ids=["in memory", "cached"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"x,y,x\n" + b"1,2,3\n4,5,7\n" * 20, "two columns have the name x; rename one of them"),
        ("größe,y\n".encode("latin-1") + b"1,2\n" * 20, "UTF-8"),
        (b"x,y\n", "it has no rows"),
        (b"x,y\n" + b"1,2,3\n4,5,7\n" * 20, "row 2 has 3 values, and the header names 2|Expected 2 columns, got 3"),
        (b"x,y\n" + b"1,2\n" * 20 + b"3\n", "row 22 has 1 values, and the header names 2|Expected 2 columns, got 1"),
        (
            "x,y\n1,2\n".encode("utf-16-le"),
            "line 1 has a zero byte; save the table as UTF-8|Expected 2 columns",
        ),
    ],
    ids=["two of one name", "Latin-1", "no rows", "more values", "fewer values", "UTF-16 without a mark"],
)
def test_a_table_that_cannot_be_read_is_a_sentence(tmp_path, content, words, cached):
    (tmp_path / "table.csv").write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        Table(str(tmp_path), ["y"], cache=str(tmp_path / "cache") if cached else None)
    assert str(tmp_path / "table.csv") in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["csv", "cached", "parquet"])
def test_a_column_of_two_kinds_in_two_files_is_named(write, tmp_path, form):
    names = {part: f"{part}.{'parquet' if form == 'parquet' else 'csv'}" for part in ("train", "test")}
    for part, values in (("train", NUMBERS), ("test", ["a", "b", "c"] * 20)):
        write(names[part], x=values)
    with pytest.raises(ValueError, match=r"x has numbers in .*train\.\w+ and text in .*test\.\w+"):
        Table(str(tmp_path), ["y"], file=names, cache=str(tmp_path / "cache") if form == "cached" else None)


def test_truth_values_are_no_numbers(write, tmp_path):
    """0 and 1 in one file and True and False in another would become four categories."""
    write("train.csv", x=[0, 1] * 30, n=NUMBERS)
    write("test.csv", x=[True, False] * 29 + [None] * 2, n=NUMBERS)
    files = {"train": "train.csv", "test": "test.csv"}
    with pytest.raises(ValueError, match=r"x has numbers in .*train.csv and truth values in .*test.csv"):
        Table(str(tmp_path), ["y"], file=files)
    write("train.csv", x=[True, False] * 30, n=NUMBERS)
    inputs = Table(str(tmp_path), ["y"], file=files).preprocess.inputs
    assert [column.boolean for column in inputs if column.name == "x"] == [True]


@pytest.mark.parametrize("end", ["\r", "\r\n"], ids=["CR", "CRLF"])
def test_ends_of_lines_of_other_systems(write, tmp_path, end):
    write(x=NUMBERS)
    expected = Table(str(tmp_path), ["y"]).metadata
    content = (tmp_path / "table.csv").read_text().replace("\n", end)
    (tmp_path / "table.csv").write_bytes(content.encode())
    assert Table(str(tmp_path), ["y"]).metadata == expected


def test_a_file_that_changes_while_it_is_read_is_named(write, tmp_path, monkeypatch):
    root, fine = write(x=NUMBERS), table_cache.check_unchanged
    Table(root, ["y"])

    def late(before):
        with (tmp_path / "table.csv").open("a") as file:
            file.write("1,2,3\n")
        fine(before)

    monkeypatch.setattr("mtl.data.input_table.check_unchanged", late)
    with pytest.raises(ValueError, match=r"table.csv changed while it was read; start again when it is written."):
        Table(root, ["y"])


def test_without_a_cache_a_table_larger_than_memory_is_refused(monkeypatch):
    monkeypatch.setattr("os.sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}[name])
    assert table_cache.new_array(None, "numbers", (10, 10), np.float32).shape == (10, 10)
    with pytest.raises(ValueError, match=r"take 0 GB of 0 GB of memory: give data.cache=… a folder"):
        table_cache.new_array(None, "numbers", (1000, 1000), np.float32)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"age": "old"}, "the row: age is old; it must be a finite number"),
        ({"age": float("inf")}, "age is inf; it must be a finite number"),
        ({"day": "1.2.2024"}, "day is 1.2.2024, which is no date"),
        ({"age": ..., "agee": 3}, "no column age; did you mean it by agee"),
        ({"city": ...}, "no column city"),
    ],
)
def test_a_row_that_the_model_does_not_take_is_a_sentence(shop, row, words):
    whole = {"day": "2024-05-01", "city": "Bonn", "age": 30, "member": True} | row
    preprocess = Table(str(shop), TARGETS).preprocess
    with pytest.raises(ValueError) as caught:
        preprocess({name: value for name, value in whole.items() if value is not ...})
    assert words in str(caught.value)
