"""The samples, the head, and two steps of training."""

import json
from pathlib import Path

import torch

from mtl.config import load
from mtl.train import train
from my_project.data import Blots
from my_project.heads import Bounded

CONF = Path(__file__).parents[1] / "conf"


def test_a_sample_is_an_image_and_its_targets():
    """Other samples than these need other heads and losses."""
    image, targets = Blots(count=5)[0]
    assert image.shape == (3, 32, 32)
    assert targets["colour"] in (0, 1, 2) and 0 <= targets["size"] <= 1


def test_the_head_stays_between_0_and_1():
    """Whatever the features are."""
    answer = Bounded(4, 1)(100 * torch.randn(8, 4))
    assert answer.shape == (8, 1) and answer.min() >= 0 and answer.max() <= 1


def test_it_trains(tmp_path):
    """The configuration builds, and two steps leave a finished run."""
    quick = ["trainer.max_steps=2", "trainer.val_every=2", "tracker=jsonl"]
    train(load([f"hydra.searchpath=[file://{CONF}]", "+experiment=my_project", *quick]), tmp_path)
    metrics = json.loads((tmp_path / "summary.json").read_text())["test"]
    assert {"colour/accuracy", "size/abs_err"} <= metrics.keys()
