"""A table as inputs and targets: what its columns become, splits, leaks, mistakes, whole runs, and prediction."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from support.exactness import assert_same, differing, left_by

import mtl
from mtl.config import CONF, check, load
from mtl.config.build import build
from mtl.config.table_heads import take_targets
from mtl.data import table_cache
from mtl.data.loader import Batches, DataError, sequential
from mtl.data.metadata import describe, meaning_changes, split_changes
from mtl.data.table import Table, make_fixture
from mtl.data.table import main as table_main
from mtl.data.table_rows import Rows
from mtl.evaluate import evaluate_checkpoint
from mtl.system.signals import Preempted
from mtl.train import train

TARGETS = ["basket", "amount", "again"]
N = 60


@pytest.fixture
def root(tmp_path):
    make_fixture(tmp_path / "shop")
    return tmp_path / "shop"


@pytest.fixture
def write(tmp_path):
    """Write a table of these columns and two targets, y and z, of which no column tells much."""
    rng = np.random.default_rng(0)

    def write(name="table.csv", rows=N, **columns):
        own = {"y": rng.normal(size=rows), "z": rng.integers(0, 2, rows), **columns}
        table = pd.DataFrame({key: value for key, value in own.items() if value is not None})
        table.to_csv(tmp_path / name, index=False) if name.endswith("csv") else table.to_parquet(tmp_path / name)
        return str(tmp_path)

    return write


def test_the_command_that_the_tiny_table_comes_with_has_all_that_it_needs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["table.py", "--make-fixture", str(tmp_path / "shop")])
    table_main()
    command = capsys.readouterr().out.split("mtl-train ")[1].split()
    config = load(command)
    take_targets(config)
    check(config)
    assert [*config.heads] == TARGETS


def everything(part):
    return part.batch(range(len(part)), 0)


def rows_of(data, root, part="train"):
    """The rows of a split as they stand in the file."""
    table = pd.read_csv(Path(root) / "table.csv", keep_default_na=False, na_values=[""])
    own = getattr(data, part)
    return table.iloc[[int(own.path(i).rpartition(" ")[2]) - 2 for i in range(len(own))]]


def test_every_column_becomes_what_pandas_says_of_the_training_rows(root):
    data = Table(str(root), TARGETS)
    train_rows, test_rows = rows_of(data, root), rows_of(data, root, "test")
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
def test_every_way_to_read_gives_the_same_to_the_last_bit(root, tmp_path, form):
    data = Table(str(root), TARGETS)
    text = pd.read_csv(root / "table.csv", keep_default_na=False, na_values=[""])
    expected = {part: everything(getattr(data, part)) for part in ("train", "val", "test")}
    if form in ("a row a time", "a frame", "state"):
        rows = rows_of(data, root, "test")
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
        text.to_parquet(root / "table.parquet")
        arguments["file"] = "table.parquet"
    elif form == "semicolons":
        text.to_csv(root / "other.csv", index=False, sep=";", decimal=",", encoding="utf-16")
        arguments["file"] = "other.csv"
    else:
        arguments["cache"] = str(tmp_path / "cache")
        for _ in range(form == "cache, again"):
            Table(str(root), TARGETS, **arguments)
    again = Table(str(root), TARGETS, **arguments)
    if "cache" in arguments:
        folders = {own.resolve() for own in (tmp_path / "cache").iterdir() if own.is_dir()}
        Table(str(root), TARGETS, metadata=describe(again)["metadata"], **arguments)
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
def test_a_value_that_no_training_row_has_is_the_first(root, value):
    row = {"day": "2024-05-01", "city": "Bonn", "age": 30, "member": True}
    preprocess = Table(str(root), TARGETS).preprocess
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


# ----------------------------------------------------------------------------------------------- leaks, mistakes


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
    "a file that ends otherwise": (dict(x=NUMBERS), dict(file="table.xlsx"), "lacks table.xlsx (the table)"),
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
    ],
    ids=["two of one name", "Latin-1", "no rows"],
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
def test_a_row_that_the_model_does_not_take_is_a_sentence(root, row, words):
    whole = {"day": "2024-05-01", "city": "Bonn", "age": 30, "member": True} | row
    preprocess = Table(str(root), TARGETS).preprocess
    with pytest.raises(ValueError) as caught:
        preprocess({name: value for name, value in whole.items() if value is not ...})
    assert words in str(caught.value)


# -------------------------------------------------------------------------------------------------- another run


def test_a_table_is_read_with_the_inputs_and_statistics_of_the_run(root):
    stored = describe(Table(str(root), TARGETS))
    table = pd.read_csv(root / "table.csv", keep_default_na=False, na_values=[""])
    table.assign(age=table["age"] * 2, city=table["city"].replace("Ulm", "Rome")).to_csv(
        root / "other.csv", index=False
    )
    again = Table(str(root), TARGETS, file="other.csv", metadata=stored["metadata"])
    assert meaning_changes(stored, describe(again)) == [] and split_changes(stored, describe(again))
    anew = Table(str(root), TARGETS, file="other.csv")
    assert meaning_changes(stored, describe(anew)), "the negative control"


# -------------------------------------------------------------------------------------------------------- runs

RUN = ["data=table", "data.targets=[basket,amount,again]", "data.batch_size=16", "backbone.hidden=[8]", "device=cpu",
       "tracker=jsonl", "trainer.max_steps=6", "trainer.val_every=3", "trainer.checkpoint_every=2"]  # fmt: skip


def test_a_run_is_evaluated_resumed_and_loaded(root, tmp_path, monkeypatch):
    monkeypatch.setattr("mtl.runs.figures.draw_run", lambda folder: None)
    options = [*RUN, f"data.root={root}", "strategy=mgda"]
    train(load(options), tmp_path / "whole")
    stops = iter([False] * 3 + [True])
    with pytest.raises(Preempted):
        train(load(options), tmp_path / "parts", lambda: next(stops))
    train(load([*options, "resume=auto"]), tmp_path / "parts")
    assert_same(left_by(tmp_path / "whole"), left_by(tmp_path / "parts"))
    (row,) = [row for row in left_by(tmp_path / "whole")[1] if row["split"] == "test"]
    again = evaluate_checkpoint(tmp_path / "whole" / "checkpoints" / "best.pt", "test")
    assert {key: value for key, value in row.items() if key in again} == again
    measured = {"basket/accuracy", "basket/log_loss", "amount/abs_err", "amount/rmse", "amount/r2", "again/auc",
                "again/average_precision"}  # fmt: skip
    assert measured <= set(again)
    data = Table(str(root), TARGETS)
    rows = rows_of(data, root, "test")
    (root / "table.csv").unlink()
    predictor = mtl.load(tmp_path / "whole")
    answers = predictor(rows)
    one = predictor({name: None if pd.isna(value) else value for name, value in rows.iloc[0].items()})
    assert one["basket"]["class"] == answers[0]["basket"]["class"] and set(one) == set(TARGETS)
    known = rows["amount"].notna().to_numpy()
    errors = np.abs(np.array([answer["amount"] for answer in answers]) - rows["amount"].to_numpy())[known]
    assert errors.mean() == pytest.approx(row["amount/abs_err"], rel=1e-4)
    right = [answer["basket"]["class"] == basket for answer, basket in zip(answers, rows["basket"], strict=True)]
    assert np.mean([own for own, basket in zip(right, rows["basket"], strict=True) if not pd.isna(basket)]) == (
        pytest.approx(row["basket/accuracy"]))  # fmt: skip


@pytest.mark.parametrize("kind", ["parquet", "cache"])
def test_heads_are_found_without_the_whole_table_in_memory(root, tmp_path, monkeypatch, kind):
    def heads(*options):
        cfg = load([*RUN, f"data.root={root}", *options])
        take_targets(cfg)
        return cfg.heads, cfg.losses

    whole = heads()
    pd.read_csv(root / "table.csv").to_parquet(root / "table.parquet")

    def fail(*arguments):
        raise AssertionError("the whole table is read")

    monkeypatch.setattr("mtl.data.input_table.read_rows", fail)
    own = ["data.file=table.parquet"] if kind == "parquet" else [f"data.cache={tmp_path / 'cache'}"]
    assert heads(*own) == whole
    assert kind == "parquet" or list((tmp_path / "cache").iterdir()) == [], "nothing stays there"
    with pytest.raises(AssertionError):  # negative control
        heads()


SHARED = ["mmoe", "omoe", "ensemble", "cgc", "ple", "dselect_k", "cross_stitch", "nddr"]


@pytest.mark.parametrize("architecture", SHARED)
def test_every_architecture_takes_a_table(root, architecture):
    cfg = load([*RUN, f"data.root={root}", f"architecture={architecture}", "backbone.hidden=[8,6]", "strategy=mgda"])
    take_targets(cfg)
    parts, state = build(cfg)
    inputs, targets = next(iter(Batches(parts.data.train, sequential(16, 16), 0)))
    result = state.strategy.step(state.model, state.tasks, inputs, targets)
    assert all(torch.isfinite(loss) for loss in result.losses.values())
    embeddings = [name for name, _ in state.model.backbone.named_parameters() if "embeddings" in name]
    assert len(embeddings) == 2 * (len(TARGETS) if architecture in ("cross_stitch", "nddr") else 1), "they are shared"


def test_counts_are_predicted_as_counts(write, tmp_path, monkeypatch):
    monkeypatch.setattr("mtl.runs.figures.draw_run", lambda folder: None)
    rng = np.random.default_rng(0)
    x = rng.normal(size=400)
    visits = rng.poisson(np.exp(1 + 0.5 * x))
    root = write(rows=400, x=x, visits=visits, z=None)
    options = ["data=table", f"data.root={root}", "data.targets=[visits]", "data.exclude=[y]",
               "+data.kinds.visits=count", "optimizer.lr=0.02", *RUN[2:6],
               "trainer.max_steps=150", "trainer.val_every=75"]  # fmt: skip
    train(load(options), tmp_path / "run")
    predictor = mtl.load(tmp_path / "run")
    low, high = predictor({"x": -1.0})["visits"], predictor({"x": 1.0})["visits"]
    assert low == pytest.approx(np.exp(0.5), rel=0.35) and high == pytest.approx(np.exp(1.5), rel=0.35)
    (row,) = [row for row in left_by(tmp_path / "run")[1] if row["split"] == "test"]
    assert 0.5 < row["visits/abs_err"] < 2.5, "in visits"
    with pytest.raises(DataError, match=r"target of visits .* but its loss takes 0 to"):
        train(load([*options, "data.kinds.visits=number", "+losses.visits._target_=mtl.losses.MaskedPoisson"]),
              tmp_path / "wrong")  # fmt: skip


def test_the_command_writes_a_configuration_that_trains(root, tmp_path):
    def command(*arguments):
        return subprocess.run([sys.executable, "-m", "mtl.data.table", *map(str, arguments)], capture_output=True,
                              text=True, cwd=CONF.parent)  # fmt: skip

    found = command(root / "table.csv", "--targets", *TARGETS, "--kinds", "age=category", "--write", tmp_path / "conf")
    assert found.returncode == 0, found.stderr
    assert "train 91, val 15, test 14 rows" in found.stdout and "age: category" in found.stdout
    assert "customer is left out: its 120 texts are all different" in found.stdout
    cfg = load([f"hydra.searchpath=[file://{tmp_path / 'conf'}]", "data=mine", "device=cpu", "tracker=jsonl"])
    check(cfg)
    assert cfg.backbone._target_ == "mtl.backbones.Tabular" and cfg.data.inputs == ["day", "city", "age", "member"]
    _, state = build(cfg)
    assert [task.name for task in state.tasks] == TARGETS
    for arguments, words in (
        (("table.csv", "amont"), "did you mean amount?"),
        (("no.csv", "amount"), "does not exist"),
    ):
        wrong = command(root / arguments[0], "--targets", arguments[1])
        assert wrong.returncode == 1 and words in wrong.stderr and "Traceback" not in wrong.stderr
