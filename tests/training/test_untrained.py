"""A task without a label in training is named soon, and its metrics are not among the others."""

import json

import pytest
import torch
from support.composing import configuration

from mtl.data.digits import Pairs
from mtl.data.loader import DataError
from mtl.runs.terminal import final_report
from mtl.training.untrained import warn_of_unmeasured


@pytest.fixture
def lacking(monkeypatch):
    """Digits without the labels of these tasks in the split of this many samples."""

    def lack(*tasks, sizes=None, mark=False):
        draw = Pairs.batch

        def without(self, indices, epoch):
            inputs, targets = draw(self, indices, epoch)
            if sizes is None or len(self) in sizes:
                gone = {task: torch.full_like(targets[task], -100) for task in tasks} if mark else {}
                targets = {k: v for k, v in targets.items() if k not in tasks} | gone
            return inputs, targets

        monkeypatch.setattr(Pairs, "batch", without)

    return lack


def sizes(*splits):
    from mtl.config.build import build_parts

    data = build_parts(configuration("data.batch_size=8")).data
    return [len(getattr(data, split)) for split in splits]


def warnings_of(caplog):
    said = [r.getMessage() for r in caplog.records if r.levelname == "WARNING" and r.name.startswith("mtl.training")]
    return [text for text in said if "warm-up" not in text]  # the runs are that short


@pytest.mark.parametrize("mark", [False, True])
def test_it_is_said_in_the_run_and_marked_in_the_summary(train_tiny, lacking, caplog, mark):
    lacking("right", sizes=sizes("train"), mark=mark)
    folder = train_tiny("trainer.limit_train_batches=2")
    soon, late = warnings_of(caplog)
    assert soon == "right: no label in the first 2 training steps, so that nothing has been learnt of it"
    assert late == "UNTRAINED: right had no label in training; the test metrics leave it out"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["untrained"] == ["right"] and not any("right" in name for name in summary["test"])
    assert summary["test"]["loss/total"] == summary["test"]["loss/left"] and "left/accuracy" in summary["test"]
    assert "UNTRAINED, for lack of labels, and left out: right" in final_report(folder)


def test_a_run_with_all_labels_says_nothing(train_tiny, caplog):
    folder = train_tiny()
    assert not warnings_of(caplog) and json.loads((folder / "summary.json").read_text())["untrained"] == []
    assert "UNTRAINED" not in final_report(folder)


def test_a_run_without_any_label_ends(train_tiny, lacking):
    lacking("left", "right", sizes=sizes("train"))
    with pytest.raises(DataError, match="no training sample of 2 steps has a label of left, right"):
        train_tiny("trainer.limit_train_batches=2")


def test_a_split_without_labels_of_a_task_is_said_once(train_tiny, lacking, caplog):
    lacking("right", sizes=sizes("val", "test"))
    train_tiny()
    assert warnings_of(caplog) == [
        f"right: no label in {split}, so that its metrics have no value there, and loss/total is without it"
        for split in ("val", "test")
    ]


def test_what_was_labelled_before_a_resume_counts(train_tiny, lacking, caplog):
    folder = train_tiny(stop_after=2)
    lacking("right", sizes=sizes("train"))
    train_tiny(f"resume={folder}")
    assert not any("UNTRAINED" in warning for warning in warnings_of(caplog))


def test_only_absent_tasks_are_named(caplog):
    warn_of_unmeasured("val", ["a", "b"], {"loss/a": 1.0, "loss/b": 2.0})
    assert not caplog.records
    warn_of_unmeasured("val", ["a", "b"], {"loss/b": 2.0})
    assert caplog.records[0].getMessage().startswith("a: no label in val")
