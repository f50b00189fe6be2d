"""Whole runs on a table: evaluated, resumed, loaded and predicted with."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from support.exactness import assert_same, left_by
from support.tables import rows_of

import mtl
from mtl.config import CONF, check, load
from mtl.config.build import build
from mtl.config.table_heads import take_targets
from mtl.data.input_table import open_files, read_rows
from mtl.data.loader import Batches, sequential
from mtl.data.metadata import describe, meaning_changes, split_changes
from mtl.data.table import Table
from mtl.errors import ConfigError
from mtl.evaluate import evaluate_checkpoint
from mtl.system.signals import Preempted
from mtl.train import train

TARGETS = ["basket", "amount", "again"]


def test_a_table_is_read_with_the_inputs_and_statistics_of_the_run(shop):
    stored = describe(Table(str(shop), TARGETS))
    table = pd.read_csv(shop / "table.csv", keep_default_na=False, na_values=[""])
    table.assign(age=table["age"] * 2, city=table["city"].replace("Ulm", "Rome")).to_csv(
        shop / "other.csv", index=False
    )
    again = Table(str(shop), TARGETS, file="other.csv", metadata=stored["metadata"])
    assert meaning_changes(stored, describe(again)) == [] and split_changes(stored, describe(again))
    anew = Table(str(shop), TARGETS, file="other.csv")
    assert meaning_changes(stored, describe(anew)), "the negative control"


# -------------------------------------------------------------------------------------------------------- runs

RUN = ["data=table", "data.targets=[basket,amount,again]", "data.batch_size=16", "backbone.hidden=[8]", "device=cpu",
       "tracker=jsonl", "trainer.max_steps=6", "trainer.val_every=3", "trainer.checkpoint_every=2"]  # fmt: skip


def test_a_run_is_evaluated_resumed_and_loaded(shop, tmp_path, monkeypatch):
    monkeypatch.setattr("mtl.runs.figures.draw_run", lambda folder: None)
    options = [*RUN, f"data.root={shop}", "strategy=mgda"]
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
    data = Table(str(shop), TARGETS)
    rows = rows_of(data, shop, "test")
    (shop / "table.csv").unlink()
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


@pytest.mark.parametrize("form", ["csv", "parquet", "cache"])
def test_a_table_is_read_once_for_its_heads_and_its_rows(shop, tmp_path, monkeypatch, form):
    pd.read_csv(shop / "table.csv").to_parquet(shop / "table.parquet")
    own = {"parquet": ["data.file=table.parquet"], "cache": [f"data.cache={tmp_path / 'cache'}"]}.get(form, [])
    opened, whole = [], []
    monkeypatch.setattr("mtl.data.input_table.open_files", lambda *a: opened.append(a) or open_files(*a))
    monkeypatch.setattr("mtl.data.input_table.read_rows", lambda *a: whole.append(a) or read_rows(*a))
    cfg = load([*RUN, f"data.root={shop}", *own])
    data = take_targets(cfg)
    assert [head.out_features for head in cfg.heads.values()] == [3, 1, 2]
    assert build(cfg, data=data)[0].data is data
    assert len(opened) == 1 and len(whole) == (form == "csv"), "by columns, where it need not fit into memory"
    build(cfg)
    assert len(opened) == (1 if form == "cache" else 2), "the negative control"


SHARED = ["mmoe", "omoe", "ensemble", "cgc", "ple", "dselect_k", "cross_stitch", "nddr"]


@pytest.mark.parametrize("architecture", SHARED)
def test_every_architecture_takes_a_table(shop, architecture):
    cfg = load([*RUN, f"data.root={shop}", f"architecture={architecture}", "backbone.hidden=[8,6]", "strategy=mgda"])
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
    for loss in ("mtl.losses.MaskedPoisson", "torch.nn.PoissonNLLLoss"):
        with pytest.raises(
            ConfigError, match=r"^losses.visits \(\w+\) takes counts from 0 on, and the targets of visits"
        ):
            train(load([*options, "data.kinds.visits=number", f"+losses.visits._target_={loss}"]), tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def test_the_command_writes_a_configuration_that_trains(shop, tmp_path):
    def command(*arguments):
        return subprocess.run([sys.executable, "-m", "mtl.data.table", *map(str, arguments)], capture_output=True,
                              text=True, cwd=CONF.parent)  # fmt: skip

    found = command(shop / "table.csv", "--targets", *TARGETS, "--kinds", "age=category", "--write", tmp_path / "conf")
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
        wrong = command(shop / arguments[0], "--targets", arguments[1])
        assert wrong.returncode == 1 and words in wrong.stderr and "Traceback" not in wrong.stderr
