"""Metrics of a task by the configuration: what they see, that they replace the data set's, and their mistakes."""

import pytest
import torch
from support.own_parts import Seen
from torch import nn

from mtl.config import check, load
from mtl.config.build import build
from mtl.config.dry_run import dry_run_task
from mtl.errors import ConfigError
from mtl.runs.files import read_metrics
from mtl.tasks import Task
from mtl.train import train

TINY = ["trainer.max_steps=1", "trainer.limit_val_batches=1", "data.batch_size=8", "tracker=jsonl", "device=cpu"]
AUROC = ["+metrics.left.auroc._target_=torchmetrics.classification.MulticlassAUROC",
         "+metrics.left.auroc.num_classes=10"]  # fmt: skip


def test_named_metrics_replace_those_of_the_data_set_and_choose_the_best_model(tmp_path):
    parts, state = build(load([*TINY, *AUROC, "trainer.monitor=left/auroc"]))
    assert [list(task.metrics) for task in parts.tasks] == [["auroc"], ["accuracy"]]
    assert state.monitor.mode == "max"
    assert [list(task.metrics) for task in build(load(TINY))[0].tasks] == [["accuracy"]] * 2, "negative control"
    assert [list(task.metrics) for task in build(load([*TINY, "+metrics.left={}"]))[0].tasks] == [[], ["accuracy"]]
    assert [list(task.metrics) for task in build(load([*TINY, "+metrics.left=null"]))[0].tasks] == [["accuracy"]] * 2


@pytest.mark.parametrize("kind", ["tuple", "dict", "embedding"])
def test_a_head_whose_output_is_no_logits_can_be_trained(kind, tmp_path):
    own = ["heads.left._target_=support.own_parts.Both", "~heads.left.out_features", f"+heads.left.kind={kind}",
           "losses.left._target_=support.own_parts.Norm"]  # fmt: skip
    with pytest.raises(ConfigError, match=r"left/accuracy does not fit .*\+metrics.left names others.*\+metrics.left="):
        build(load([*TINY, *own]))
    cfg = load([*TINY, *own, "+metrics.left.seen._target_=support.own_parts.Seen"])
    check(cfg)
    train(cfg, tmp_path)
    assert set(read_metrics(tmp_path, "test")[-1]) >= {"left/seen", "loss/left", "right/accuracy"}


@pytest.mark.parametrize(
    ("target", "loss", "rows"),
    [
        (torch.tensor([3, -100, 1]), nn.CrossEntropyLoss(), [0, 2]),
        (torch.tensor([3, 0, 1]), nn.CrossEntropyLoss(), [0, 1, 2]),
        (torch.tensor([[0.0, torch.nan], [torch.nan, torch.nan], [1.0, 1.0]]), nn.BCEWithLogitsLoss(), [0, 2]),
        (["a", "b", "c"], nn.CrossEntropyLoss(), [0, 1, 2]),
    ],
)
def test_an_own_metric_sees_the_samples_with_a_label(target, loss, rows):
    output = torch.arange(3.0)[:, None].expand(3, 2)
    task = Task("t", loss, {"seen": Seen()}, own_metrics=True)
    task.update_metrics((output, {"a": output, "scale": torch.tensor(2.0)}), target)
    (((first, others), labels),) = task.metrics["seen"].batches
    assert first[:, 0].tolist() == others["a"][:, 0].tolist() == rows and others["scale"] == 2
    assert len(labels) == len(rows)
    task = Task("t", loss, {"seen": Seen()})
    task.update_metrics(output, target)
    assert len(task.metrics["seen"].batches[0][0]) == 3, (
        "negative control: a data set's own metrics know missing labels"
    )


def test_a_metric_that_needs_more_samples_than_one_is_tried_on_more():
    from torchmetrics import R2Score

    target = torch.tensor([[0.5], [torch.nan]])
    task = Task("t", nn.MSELoss(), {"r2": R2Score()}, own_metrics=True)
    dry_run_task(task, nn.Linear(4, 1), torch.randn(2, 4), {"t": target})
    assert task.metrics["r2"].total == 0, "it is reset"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["+metrics.lefd={}"], "metrics.lefd names no task; did you mean left"),
        (["+metrics.left=3"], "metrics.left must be a mapping of metrics by name"),
        (AUROC[:1], "metrics.left.auroc: .*MulticlassAUROC needs num_classes"),
        (["+metrics.left._target_=torchmetrics.MeanMetric"], "metrics.left must be a mapping of metrics by name"),
        (["+metrics.left.a._target_=nowhere.Metric"], "metrics.left.a._target_=nowhere.Metric cannot be imported"),
        (["+metrics.left.a._target_=torch.nn.Identity"], r"metrics.left.a \(Identity\) must be a torchmetrics.Metric"),
        (["+metrics.left.a._target_=torchmetrics.MeanSquaredError"], "The metric left/a does not fit heads.left"),
        ([AUROC[0], AUROC[1], "+metrics.left.auroc.average=none"], "left/auroc must give one number, but gives .10."),
    ],
)
def test_a_mistake_is_one_sentence_with_its_key(overrides, words):
    with pytest.raises(ConfigError, match=words):
        cfg = load([*TINY, *overrides])
        check(cfg)
        build(cfg)
