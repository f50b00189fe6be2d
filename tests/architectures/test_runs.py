"""Runs of architectures that mix columns or mask maps: stopped and resumed, they are what they would have been."""

import pytest
from support.exactness import assert_same, left_by

RUNS = {
    "mtan": ["strategy=mgda"],
    "cross_stitch": ["strategy=pcgrad", "optimizer.sharing.lr=0.1"],
    "nddr": ["strategy=graddrop"],
    "ltb": ["strategy=mgda", "architecture.warm_up=0.3", "optimizer.sharing.lr=0.1"],
    "lora": ["strategy=mgda"],
    "film": ["strategy=mgda", "strategy.space=parameters"],
}


TRANSFORMER = ["backbone=vit_tiny", "backbone.name=test_vit2"]  # for low-rank parts


@pytest.mark.parametrize("name", RUNS)
def test_resumed_to_the_last_bit(name, train_tiny):
    backbone = TRANSFORMER if name == "lora" else ["backbone=tiny_resnet"]
    options = [f"architecture={name}", *backbone, "data.image_size=16", *RUNS[name]]
    whole = train_tiny(*options, folder="whole")
    train_tiny(*options, folder="parts", stop_after=2)
    parts = train_tiny(*options, "resume=auto", folder="parts")
    assert_same(left_by(whole), left_by(parts))
