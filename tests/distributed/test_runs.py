"""Runs of two processes: the same results as of one process, and exact resume."""

import pytest
import torch
from omegaconf import OmegaConf
from support.exactness import assert_same, left_by
from support.ranks import run_ranks
from support.runs import BY_LAYERS, PARTLY_UNFROZEN, PLAIN, SHARED, UNFROZEN, evaluation_with_an_absent_task, run_all

from mtl.config import load
from mtl.distributed.collectives import get_rank
from mtl.distributed.ranks import rank
from mtl.evaluate import evaluate_checkpoint
from mtl.runs import checkpoint
from mtl.runs.files import read_metrics
from mtl.train import train


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder of the runs of two ranks, and each rank's answers (see ``run_all``)."""
    root = tmp_path_factory.mktemp("two")
    return root, run_ranks(2, run_all, str(root))


def parameters(folder):
    return checkpoint.load(folder)["model"]


def assert_close(a, b, tolerance=1e-5):
    assert max((a[name] - b[name]).abs().max() for name in a) <= tolerance


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("plain", []),
        ("accumulated", ["trainer.accumulate_grad_batches=2", "trainer.limit_train_batches=8"]),
        ("unfrozen", UNFROZEN),
        ("partly unfrozen", PARTLY_UNFROZEN),
        ("sharded, by layers", BY_LAYERS),
        ("sharded", ["optimizer=adamw", "trainer.grad_clip_norm=0.1"]),
        ("sharded, by SGD", []),
        ("sharded, with a common part", [*SHARED, "optimizer=adamw", "trainer.grad_clip_norm=0.1"]),
    ],
)
def test_two_processes_leave_what_one_leaves(tmp_path, two, name, options):
    train(load([*PLAIN, *options]), tmp_path / "one")
    one, both = left_by(tmp_path / "one"), left_by(two[0] / name)
    assert_close(one[0]["last.pt"]["model"], both[0]["last.pt"]["model"])
    for own, expected in zip(both[1], one[1], strict=True):  # rows of every split
        for row in (own, expected):
            row.pop("memory/peak", None)
        assert own.pop("split") == expected.pop("split")
        assert own == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_stopped_on_one_rank_all_stop_and_go_on_to_the_last_bit(two):
    assert_same(left_by(two[0] / "whole"), left_by(two[0] / "parts"))
    assert_same(left_by(two[0] / "partly unfrozen"), left_by(two[0] / "unfrozen parts"))


def test_ranks_draw_other_numbers(two):
    first, second = checkpoint.load(two[0] / "whole")["rng"]
    assert not torch.equal(first["cpu"], second["cpu"])


def test_inside_of_the_process_group_the_environment_and_the_group_give_the_same_rank(two):
    assert [answers["ranks"] for answers in two[1]] == [(0, 0), (1, 1)]


def test_outside_of_the_process_group_only_the_environment_gives_the_rank(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert (rank(), get_rank()) == (1, 0)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert (rank(), get_rank()) == (0, 0)


def test_a_sharded_run_is_saved_whole_and_goes_on(two):
    assert_close(parameters(two[0] / "sharded"), parameters(two[0] / "sharded parts"), 1e-7)


@pytest.mark.parametrize("name", ["sharded parts", "parts"])
def test_one_process_goes_on_with_what_two_have_left(tmp_path, two, name):
    folder = two[0] / name
    content = checkpoint.load(folder)
    path = tmp_path / "moved.pt"
    checkpoint.save(path, content)
    config = dict(content["config"], resume=str(path))
    config["trainer"] = dict(config["trainer"], max_steps=12, shard=None)
    train(OmegaConf.create(config), tmp_path / "alone")
    assert checkpoint.load(tmp_path / "alone")["step"] == 12


def test_the_evaluation_of_one_process_is_that_of_two(two):
    (row,) = read_metrics(two[0] / "plain", "test")
    own = evaluate_checkpoint(two[0] / "plain" / "checkpoints" / "best.pt", "test")
    assert own == pytest.approx({name: row[name] for name in own}, rel=1e-5)


def test_an_evaluation_counts_what_each_rank_has(two):
    expected = evaluation_with_an_absent_task()
    assert "loss/b" in expected
    for answers in two[1]:
        assert answers["evaluation"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("batch", "trainer.devices=2 must be at most 1"),
        ("sum", "losses.left.reduction=sum: with several processes a loss must be the mean"),
        ("rows", "strategy.space=features: MoCo works on whole rows"),
        ("space", "trainer.shard=backbone: no rank has whole rows over the parameters"),
        ("ema", "trainer.shard=backbone cannot go with trainer.ema=0.9"),
        ("naive", "trainer.shard=all: with strategy=naive"),
        ("fused SGD", "optimizer.fused=true: torch's SGD has no fused kernel for sharded parameters"),
        ("fused", "optimizer.fused=true: with trainer.shard=all the parameters that several heads share"),
        ("devices", "trainer.devices=5, but torchrun has started 2 processes"),
    ],
)
def test_mistakes(two, name, words):
    assert all(answers[name].startswith(words) for answers in two[1])
