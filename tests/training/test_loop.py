"""The loop in this process: what it writes, when, and that it is the same again."""

import json

import pytest
import torch

from mtl.config import load
from mtl.runs.checkpoint import load as load_checkpoint
from mtl.runs.files import read_metrics

TRAIN_NAMES = {
    "loss/left", "loss/right", "loss/total", "weight/left", "weight/right", "grad_norm",
    "lr", "lr/backbone", "lr/heads", "time/step", "time/data", "samples_per_second",
}  # fmt: skip
CONFLICT_NAMES = {
    "conflict/cos/left~right", "conflict/cos_mean", "conflict/cos_min", "conflict/fraction",
    "conflict/magnitude_similarity", "conflict/norm/left", "conflict/norm/right", "conflict/condition_number",
    "conflict/rank", "conflict/stationarity", "conflict/cancellation",
}  # fmt: skip
VAL_NAMES = {"loss/left", "loss/right", "loss/total", "left/accuracy", "right/accuracy"}
PLACE = {"step", "epoch", "split"}


@pytest.mark.parametrize("strategy", ["naive", "detached"])
def test_what_a_run_leaves_behind(train_tiny, strategy):
    folder = train_tiny(f"strategy={strategy}", "trainer.log_every=2", "conflict.every=3")
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoints", "config.yaml", "examples", "metrics.jsonl", "run.png", "summary.json",
    ]  # fmt: skip
    train, val, test = (read_metrics(folder, split) for split in ("train", "val", "test"))
    assert [row["step"] for row in train] == [1, 2, 3, 4] and [row["step"] for row in val] == [2, 4]
    measured = [row["step"] for row in train if row.keys() >= CONFLICT_NAMES]
    assert measured == [1, 3, 4]
    assert train[0].keys() == PLACE | TRAIN_NAMES | CONFLICT_NAMES
    assert train[1].keys() == PLACE | TRAIN_NAMES | {"memory/peak"}
    assert all(row.keys() == PLACE | VAL_NAMES for row in val + test) and len(test) == 1
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["steps"] == 4 and summary["test"].keys() == VAL_NAMES
    assert summary["parameters"] == {
        "shared": 372400, "readers": {}, "heads": {"left": 970, "right": 970}, "total": 374340,
    }  # fmt: skip
    assert summary["memory/peak"] > 372400 * 4  # at least the gradients of a step
    assert torch.__version__.startswith(summary["versions"]["torch"]) and summary["threads"] == 1


def test_the_strategies_see_the_same_tasks_fight_and_learn_the_same(train_tiny):
    naive, detached, other = (
        read_metrics(train_tiny(*overrides, folder=str(i)), "train")[-1]
        for i, overrides in enumerate([["strategy=naive"], ["strategy=detached"], ["seed=1"]])
    )
    for name in CONFLICT_NAMES | {"loss/left", "loss/right", "grad_norm"}:
        assert naive[name] == pytest.approx(detached[name], rel=1e-3, abs=1e-4), name
    assert other["loss/left"] != pytest.approx(naive["loss/left"], rel=1e-3)


@pytest.mark.parametrize("overrides", [[], ["trainer.num_workers=2"], ["conflict.every=null", "trainer.log_every=3"]])
def test_the_same_seed_gives_the_same_bits(train_tiny, overrides):
    """Also with loader processes, and whether or not anything is measured or logged."""
    dropout = ["+backbone.options.drop_rate=0.3", "trainer.deterministic=true"]
    first, second = train_tiny(*dropout, folder="a"), train_tiny(*dropout, *overrides, folder="b")
    a, b = (load_checkpoint(folder)["model"] for folder in (first, second))
    assert all(torch.equal(a[name], b[name]) for name in a)
    other = load_checkpoint(train_tiny(*dropout, "seed=1", folder="c"))["model"]
    assert not all(torch.equal(a[name], other[name]) for name in a)


def test_evaluating_in_between_changes_no_bit_of_the_training(train_tiny):
    dropout = ["+backbone.options.drop_rate=0.3"]
    a = load_checkpoint(train_tiny(*dropout, folder="a"))["model"]
    b = load_checkpoint(train_tiny(*dropout, "trainer.val_every=1", folder="b"))["model"]
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_any_of_timms_schedules_counts_steps(train_tiny):
    folder = train_tiny(
        "scheduler=constant", "scheduler._target_=timm.scheduler.StepLRScheduler", "~scheduler.factor",
        "+scheduler.decay_t=2", "+scheduler.decay_rate=0.1", "optimizer.lr=0.01", "trainer.log_every=1",
    )  # fmt: skip
    assert [row["lr"] for row in read_metrics(folder, "train")] == pytest.approx([0.01, 0.01, 0.001, 0.001])


def test_best_is_the_evaluation_with_the_best_monitored_metric(train_tiny):
    folder = train_tiny(
        "trainer.max_steps=8", "trainer.val_every=1", "trainer.monitor=left/accuracy", "trainer.mode=max"
    )
    val = read_metrics(folder, "val")
    best = max(val, key=lambda row: row["left/accuracy"])
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["best"]["step"] == best["step"] and summary["best"]["monitor"] == best["left/accuracy"]
    assert load_checkpoint(folder / "checkpoints" / "best.pt")["step"] == best["step"]
    assert load_checkpoint(folder / "checkpoints" / "last.pt")["step"] == 8


def test_training_stops_when_nothing_gets_better(train_tiny):
    folder = train_tiny(
        "trainer.max_steps=20", "trainer.val_every=1", "trainer.patience=3",
        "optimizer=sgd", "optimizer.lr=0.0", "scheduler=constant", "trainer.overfit_batches=1",
        "+backbone.options.drop_rate=0.0", "trainer.monitor=left/accuracy", "trainer.mode=max",
    )  # fmt: skip
    steps = [row["step"] for row in read_metrics(folder, "val")]
    best = json.loads((folder / "summary.json").read_text())["best"]["step"]
    assert steps[-1] == best + 3 < 20
    assert load_checkpoint(folder)["step"] == steps[-1]


def test_the_gradient_is_clipped(train_tiny):
    """With SGD the first step moves the parameters by no more than lr x the norm."""
    folder = train_tiny(
        "optimizer=sgd", "optimizer.momentum=0", "optimizer.weight_decay=0", "optimizer.lr=1.0", "scheduler=constant",
        "trainer.max_steps=1", "trainer.val_every=1", "trainer.grad_clip_norm=0.01",
    )  # fmt: skip
    from mtl.config.build import build

    _, start = build(load(["data.batch_size=8"]))
    end = load_checkpoint(folder)["model"]
    moved = sum((end[n] - p).square().sum() for n, p in start.model.named_parameters()).sqrt()
    assert moved.item() == pytest.approx(0.01, rel=1e-3)
    assert read_metrics(folder, "train")[0]["grad_norm"] > 0.1  # the norm before it was clipped


def test_a_scheduler_on_plateau_is_told_the_monitored_metric(train_tiny):
    folder = train_tiny(
        "scheduler=plateau", "scheduler.patience=0", "optimizer=sgd", "optimizer.lr=0.5", "trainer.val_every=1",
        "trainer.max_steps=12",
    )  # fmt: skip
    rates = {row["lr"] for row in read_metrics(folder, "train")} | {
        group["lr"] for group in load_checkpoint(folder)["optimizer"]["param_groups"]
    }
    assert rates <= {0.5 / 2**i for i in range(13)} and len(rates) > 1


def test_overfitting_trains_and_evaluates_on_the_same_batches(train_tiny):
    folder = train_tiny(
        "trainer.overfit_batches=1", "trainer.max_steps=60", "trainer.val_every=30", "scheduler=constant"
    )
    val = read_metrics(folder, "val")
    assert val[-1]["left/accuracy"] == 1 and val[-1]["loss/total"] < 0.5 * val[0]["loss/total"] < 5


def test_a_fast_dev_run_is_one_step(train_tiny):
    folder = train_tiny("trainer.fast_dev_run=true", "trainer.max_steps=100")
    assert [row["step"] for row in read_metrics(folder, "train")] == [1]
    assert len(read_metrics(folder, "val")) == len(read_metrics(folder, "test")) == 1


@pytest.mark.parametrize(("every", "steps"), [("null", []), ("3", [1, 3, 4])], ids=["never", "3"])
def test_a_rule_whose_gram_matrix_is_there_in_every_step_logs_the_conflict_that_was_asked_for(train_tiny, every, steps):
    rows = read_metrics(train_tiny("strategy=mgda", "trainer.log_every=1", f"conflict.every={every}"), "train")
    assert len(rows) == 4 and [row["step"] for row in rows if row.keys() & CONFLICT_NAMES] == steps


@pytest.mark.parametrize("strategy", ["naive", "detached"])
def test_the_parameter_space_check_is_logged_when_it_is_due(train_tiny, strategy):
    folder = train_tiny(f"strategy={strategy}", "conflict.audit_every=2", "conflict.every=null", "conflict.tolerance=0")
    audited = [row["step"] for row in read_metrics(folder, "train") if "audit/cos/left~right" in row]
    assert audited == [2, 4]
    row = read_metrics(folder, "train")[1]
    assert row["audit/sign_agreement"] in (0, 1) and 0 <= row["audit/cos_error"] <= 2
