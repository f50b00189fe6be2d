"""Several tables, each a task with rows of its own: what is shared, splits, sampling, mistakes, runs, prediction."""

import shlex
import sys
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from support.exactness import assert_same, left_by

import mtl
from mtl.config import check, load
from mtl.config.build import build
from mtl.config.table_heads import take_targets
from mtl.data import domain_tables, fixtures
from mtl.data.domain_tables import DomainTables
from mtl.data.loader import Batches, EndlessSampler
from mtl.data.table import Table
from mtl.errors import ConfigError
from mtl.evaluate import evaluate_checkpoint
from mtl.predict import main as predict_main
from mtl.system.signals import Preempted
from mtl.train import train

FILES = {"bonn": "bonn.csv", "ulm": "ulm.csv"}


@pytest.fixture
def flats(tmp_path):
    domain_tables.make_fixture(tmp_path / "flats")
    return tmp_path / "flats"


def change(flats, city, **columns):
    """Replace columns of a table; None removes one."""
    table = pd.read_csv(flats / f"{city}.csv").assign(**{name: own for name, own in columns.items() if own is not None})
    gone = [name for name, own in columns.items() if own is None]
    table.drop(columns=gone).to_csv(flats / f"{city}.csv", index=False)
    return table


def rows(data, part):
    """All rows of a split by task, in the tables' order: their inputs and labels."""
    own = getattr(data, part)
    return own.batch(range(len(own)), 0)


def test_the_command_that_the_tiny_tables_come_with_has_all_that_it_needs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["domain_tables.py", "--make-fixture", str(tmp_path / "flats")])
    fixtures.main(domain_tables.make_fixture, domain_tables.NAMED_BY)
    config = load(shlex.split(capsys.readouterr().out.split("mtl-train ")[1]))
    take_targets(config)
    check(config)
    assert [*config.heads] == ["bonn", "ulm"]
    assert [loss._target_ for loss in config.losses.values()] == ["mtl.losses.MaskedL2"] * 2


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_inputs_are_those_of_one_table_and_targets_those_of_each(flats, form):
    """A table of both below each other, split in the same way, is the second implementation."""
    tables = {city: pd.read_csv(flats / f"{city}.csv") for city in FILES}
    data = DomainTables(FILES, "price", str(flats))
    if form == "parquet":
        for city, own in tables.items():
            own.to_parquet(flats / f"{city}.parquet")
        other = DomainTables({city: f"{city}.parquet" for city in FILES}, "price", str(flats))
        assert_same([rows(data, part) for part in ("train", "val", "test")],
                    [rows(other, part) for part in ("train", "val", "test")])  # fmt: skip
        return
    alone = {city: Table(str(flats), ["price"], file=f"{city}.csv") for city in FILES}
    order, parts = [], []
    for city, own in tables.items():
        place = {alone[city].__dict__[part].path(i): part for part in ("train", "val", "test")
                 for i in range(len(alone[city].__dict__[part]))}  # fmt: skip
        parts += [place[f"{flats}/{city}.csv, row {i + 2}"] for i in range(len(own))]
        order += [city] * len(own)
    both = pd.concat(tables.values()).assign(part=parts, city=order)
    both.to_csv(flats / "both.csv", index=False)
    whole = Table(str(flats), ["price"], file="both.csv", split="part", exclude=["city"])
    assert data.preprocess.state() == whole.preprocess.state()
    for part in ("train", "val", "test"):
        inputs, _ = getattr(whole, part).batch(range(len(getattr(whole, part))), 0)
        mine, targets = data.__dict__[part], {}
        for city in FILES:
            own = both[(both["part"] == part) & (both["city"] == city)]["price"].to_numpy()
            seen = both[(both["part"] == "train") & (both["city"] == city)]["price"]
            targets[city] = ((own - seen.mean()) / seen.std(ddof=0))[~np.isnan(own)]
            known = (
                (both[both["part"] == part]["city"] == city) & both[both["part"] == part]["price"].notna()
            ).tolist()
            found = mine._tables.rows.tensors(*(a[mine._items[city]] for a in (
                mine._tables.numbers, mine._tables.categories, mine._tables.texts)))  # fmt: skip
            assert_same(found, {name: values[known] for name, values in inputs.items()})
            labels = mine._tables.values[city][mine._items[city] - mine._tables.places[city].start]
            np.testing.assert_allclose(labels[:, 0], targets[city], rtol=1e-5)
    assert data.scales["bonn"] != data.scales["ulm"]


def test_another_table_moves_no_row_to_another_split(flats):
    two, one = DomainTables(FILES, "price", str(flats)), DomainTables({"bonn": "bonn.csv"}, "price", str(flats))
    for part in ("train", "val", "test"):
        mine = [name for name in getattr(two, part).names if name.startswith("bonn/")]
        assert mine == getattr(one, part).names
    keyed = change(flats, "bonn", kind=[f"k{i // 4}" for i in range(160)])
    data = DomainTables({"bonn": "bonn.csv"}, "price", str(flats), key="kind")
    names = [{*getattr(data, part).names} for part in ("train", "val", "test")]
    assert not names[0] & names[1] | names[0] & names[2] and sum(map(len, names)) == keyed["kind"].nunique()


def test_each_task_may_have_a_target_of_its_own_kind_which_is_no_input_of_any(flats, caplog):
    change(flats, "ulm", sold=["yes", "no"] * 30, price=None)
    change(flats, "bonn", sold=["yes", "no"] * 80)
    data = DomainTables(FILES, {"bonn": "price", "ulm": "sold"}, str(flats))
    assert [data.columns[task].kind for task in FILES] == ["number", "class"]
    assert data.class_names == {"ulm": ("no", "yes")} and [*data.scales] == ["bonn"]
    assert data.preprocess.columns == ["area", "floor", "kind", "balcony", "built"]
    assert "sold is left out of the inputs: it is the target of another task" in caplog.text
    assert [*data.metrics("ulm")] == ["accuracy", "log_loss", "auc", "average_precision"]


def test_one_file_may_be_two_tasks_and_a_column_has_one_kind(flats):
    change(flats, "ulm", stars=[1, 2, 3] * 20)
    change(flats, "bonn", stars=np.arange(160) / 7)
    data = DomainTables({"a": "ulm.csv", "b": "ulm.csv"}, {"a": "price", "b": "stars"}, str(flats))
    assert [data.columns[task].kind for task in "ab"] == ["number", "class"]
    assert "price" not in data.preprocess.columns and "stars" not in data.preprocess.columns
    both = DomainTables(FILES, "stars", str(flats))
    assert [column.kind for column in both.columns.values()] == ["number", "number"], "told by both tables"
    kinds = DomainTables({"ulm": "ulm.csv"}, "stars", str(flats), kinds={"stars": "count"})
    assert kinds.columns["ulm"].kind == "count"


def test_an_input_that_gives_the_target_of_one_table_away_is_named_with_its_file(flats, caplog):
    table = pd.read_csv(flats / "ulm.csv")
    change(flats, "ulm", hint=2 * table["price"])
    change(flats, "bonn", hint=np.random.default_rng(0).normal(size=160))
    DomainTables(FILES, "price", str(flats))
    (leak,) = [text for text in caplog.messages if "gives the target" in text]
    assert leak.startswith(f"{flats}/ulm.csv: the input hint gives the target ulm away")


@pytest.mark.parametrize(("sampling", "temperature", "share"), [("equal", None, 1.0), ("proportional", None, 44 / 112),
                                                                ("temperature", 2, (44 / 112) ** 0.5)])  # fmt: skip
def test_every_sampling_draws_the_rows_as_often_as_it_says(flats, sampling, temperature, share):
    data = DomainTables(FILES, "price", str(flats), sampling=sampling, temperature=temperature, batch_size=16)
    places = len(data.train)
    seen = Counter()
    for epoch in range(3):
        _, targets = data.train.batch(range(places), epoch)
        seen.update({task: len(own) for task, own in targets.items()})
    assert places == 112 and seen["bonn"] == 3 * places
    assert seen["ulm"] == 3 * round(places * share)
    keys = iter(EndlessSampler(places, 16, places // 16, 0))
    for inputs, targets in (batch for batch, _ in zip(Batches(data.train, keys, 0), range(7), strict=False)):
        assert all(len(inputs[task]["numbers"]) == len(own) for task, own in targets.items())


MISTAKES = {
    "a column that lacks": ({"balcony": None}, {}, "{ulm} has no column balcony, which {bonn} has."),
    "a column more": ({"lift": [1, 2] * 30}, {}, "{bonn} has no column lift, which {ulm} has."),
    "another kind": ({"area": ["big", "small"] * 30}, {}, "area has numbers in {bonn} and text in {ulm}."),
    "truth values and numbers": ({"floor": [True, False] * 30}, {}, "floor has numbers in {bonn} and truth values in"),
    "no target": ({"price": None}, {}, "target=price is no column of {ulm}; its columns are area"),
    "target of another kind": ({"price": ["a", "b"] * 30}, {}, "price has numbers in {bonn} and text in {ulm}."),
    "target misspelt": ({}, {"target": "prize"}, "target=prize is no column of {bonn}; did you mean price?"),
    "a target for no table": ({}, {"target": {"bonn": "price", "ulm": "price", "um": "price"}}, "target.um names no"),
    "no target for a table": ({}, {"target": {"bonn": "price"}}, "has no column for ulm, the table {ulm}."),
    "a target as an input": ({}, {"inputs": ["area", "price"]}, "inputs=price is the target of a task"),
    "inputs misspelt": ({}, {"inputs": ["areas"]}, "inputs=areas is no column of {bonn}, {ulm}; did you mean area?"),
    "exclude misspelt": ({}, {"exclude": ["kinds"]}, "exclude=kinds is no column of {bonn}, {ulm}; did you mean kind?"),
    "infinity": ({"area": [np.inf] + [1.5] * 59}, {}, "{ulm}, row 2: area is inf; it must be a finite number or"),
    "constant target": ({"price": [1.5] * 60}, {}, "{ulm}: price is constant in the training rows"),
    "no label in a split": ({"price": [3.5, 4.5] * 29 + [None] * 2, "part": ["train"] * 58 + ["val", "test"]},
                            {"files": {"ulm": "ulm.csv"}, "split": "part"},
                            "{ulm}: no row of the split val has a label in price."),
    "a kind of nothing": ({}, {"kinds": {"w": "number"}}, "kinds.w names neither a target nor an input"),
    "no file": ({}, {"files": {"bonn": "bon.csv"}}, "lacks bon.csv (a table; did you mean bonn.csv?)"),
    "no files": ({}, {"files": {}}, "files={{}} must be a table by its task's name"),
    "no such sampling": ({}, {"sampling": "often"}, "sampling=often must be one of equal, proportional, temperature"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_sentence_with_file_and_column(flats, case):
    columns, arguments, words = MISTAKES[case]
    change(flats, "ulm", **columns)
    with pytest.raises(ValueError) as caught:
        DomainTables(**{"files": FILES, "target": "price", "root": str(flats), **arguments})
    message = str(caught.value)
    assert words.format(bonn=flats / "bonn.csv", ulm=flats / "ulm.csv") in message and "\n" not in message


def test_a_column_of_one_table_alone_is_excluded(flats):
    change(flats, "ulm", lift=[1, 2] * 30)
    data = DomainTables(FILES, "price", str(flats), exclude=["lift"])
    assert "lift" not in data.preprocess.columns
    assert DomainTables(FILES, "price", str(flats), inputs=["kind", "area"]).preprocess.columns == ["kind", "area"]


RUN = ["data=domain_tables", "data.files={bonn: bonn.csv, ulm: ulm.csv}", "data.target=price", "data.batch_size=16",
       "data.sampling=temperature", "data.temperature=2", "backbone.hidden=[8]", "device=cpu", "tracker=jsonl",
       "trainer.max_steps=6", "trainer.val_every=3", "trainer.checkpoint_every=2"]  # fmt: skip


def test_a_run_is_evaluated_resumed_and_loaded(flats, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mtl.runs.figures.draw_run", lambda folder: None)
    options = [*RUN, f"data.root={flats}", "strategy=pcgrad", "strategy.space=parameters"]
    train(load(options), tmp_path / "whole")
    stops = iter([False] * 3 + [True])
    with pytest.raises(Preempted):
        train(load(options), tmp_path / "parts", lambda: next(stops))
    train(load([*options, "resume=auto"]), tmp_path / "parts")
    assert_same(left_by(tmp_path / "whole"), left_by(tmp_path / "parts"))
    (row,) = [row for row in left_by(tmp_path / "whole")[1] if row["split"] == "test"]
    again = evaluate_checkpoint(tmp_path / "whole" / "checkpoints" / "best.pt", "test")
    assert {key: value for key, value in row.items() if key in again} == again and "ulm/rmse" in again
    data = DomainTables(FILES, "price", str(flats))
    numbers = data.test._items["ulm"] - data.test._tables.places["ulm"].start
    held_out = pd.read_csv(flats / "ulm.csv", keep_default_na=False, na_values=[""]).iloc[numbers]
    for city in FILES:
        (flats / f"{city}.csv").unlink()
    answers = mtl.load(tmp_path / "whole")(held_out)
    errors = np.abs([own["ulm"] - price for own, price in zip(answers, held_out["price"], strict=True)])
    assert errors.mean() == pytest.approx(row["ulm/abs_err"], rel=1e-4)
    assert answers[0]["ulm"] != answers[0]["bonn"], "each head its own"
    held_out.drop(columns="price").to_csv(tmp_path / "new.csv", index=False)
    command = ["mtl-predict", str(tmp_path / "whole"), str(tmp_path / "new.csv"), "--tasks", "ulm"]
    monkeypatch.setattr(sys, "argv", [*command, "--out", str(tmp_path / "predicted.csv")])
    predict_main()
    predicted = pd.read_csv(tmp_path / "predicted.csv")
    assert [*predicted] == ["file", "row", "ulm"]
    np.testing.assert_allclose(predicted["ulm"], [own["ulm"] for own in answers], rtol=1e-6)


OTHERS = ["architecture=mmoe", "architecture=cross_stitch", "backbone=ft_transformer"]


@pytest.mark.parametrize("other", OTHERS)
def test_architectures_and_backbones_take_the_tables(flats, other):
    cfg = load([*(own for own in RUN if not own.startswith("backbone.")), f"data.root={flats}", other])
    parts, state = build(cfg, data=take_targets(cfg))
    inputs, targets = parts.data.train.batch(range(16), 0)
    result = state.strategy.step(state.model, state.tasks, inputs, targets)
    assert [*result.losses] == ["bonn", "ulm"] and all(torch.isfinite(loss) for loss in result.losses.values())


def test_heads_of_a_table_for_other_data_are_a_sentence(flats):
    cfg = load(["data=office", f"data.root={flats}", "heads=table", "losses=table", "+data.targets=[a]"])
    with pytest.raises(ConfigError, match=r"data.targets is not an argument of mtl.data.office.Office"):
        take_targets(cfg)


NORMED = "{_target_: torch.nn.Sequential, _args_: [{_target_: torch.nn.Linear, in_features: 8, out_features: 1}, " \
         "{_target_: torch.nn.BatchNorm1d, num_features: 1}]}"  # fmt: skip


@pytest.mark.parametrize("sampling", ["proportional", "equal"])
def test_a_batch_of_one_sample_is_refused_where_a_head_cannot_train_on_it(flats, sampling):
    own = [f"data.root={flats}", "data.sampling=" + sampling, "data.temperature=null", "data.batch_size=8"]
    cfg = load([*RUN, *own, f"+heads.ulm={NORMED}"])
    data = take_targets(cfg)
    if sampling == "equal":
        build(cfg, data=data)
        return
    with pytest.raises(ConfigError) as caught:
        build(cfg, data=data)
    assert str(caught.value).startswith(
        "data.sampling leaves one sample of ulm in some batches (equal does not), and heads.ulm.head.1 (BatchNorm1d)"
    )
    drawn = [
        keys for seed in range(100) for _, (_, keys) in zip(range(14), EndlessSampler(112, 8, 14, seed), strict=False)
    ]
    lone = np.mean([len(data.train.samples("ulm", keys)) == 1 for keys in drawn])
    assert lone == pytest.approx(data.train.chance_of_one("ulm", 8), rel=0.2), "as often as it is drawn"
    assert data.train.chance_of_one("bonn", 8) == 0


def test_free_texts_of_all_tables_have_one_vocabulary(flats):
    for city, count in {"bonn": 160, "ulm": 60}.items():
        change(flats, city, note=[f"a quiet {city} flat, number {i}" for i in range(count)])
    own = ["backbone=table_text", "backbone.width=16", "data.length=16"]
    cfg = load([*(option for option in RUN if not option.startswith("backbone.")), f"data.root={flats}", *own])
    parts, state = build(cfg, data=take_targets(cfg))
    assert {"bonn", "ulm"} <= {*parts.data.metadata["tokenizer"].replace('"', " ").split()}
    inputs, targets = parts.data.train.batch(range(16), 0)
    assert inputs["ulm"]["text"]["tokens"].shape[0] == len(targets["ulm"]) < 16
    result = state.strategy.step(state.model, state.tasks, inputs, targets)
    assert all(torch.isfinite(loss) for loss in result.losses.values())
