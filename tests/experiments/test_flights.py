"""The study of the flights: its arms, and the linear models beside them."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import OneHotEncoder
from support.composing import options

from mtl.config import load
from mtl.config.build import build
from mtl.data.flights import TARGETS, Flights, make_fixture
from mtl.data.loader import Batches, sequential

STUDY = Path(__file__).parents[2] / "experiments" / "flights"
ARMS = options("experiment/flights/arm")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flights") / "tiny"
    make_fixture(folder)
    return str(folder)


@pytest.fixture(scope="module")
def baseline():
    spec = importlib.util.spec_from_file_location("flights_baseline", STUDY / "baseline.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_takes_a_step(root, arm):
    choice = ["+experiment=flights", f"+experiment/flights/arm={arm}", f"data.root={root}", "device=cpu"]
    parts, state = build(load([*choice, "data.batch_size=32", "backbone.hidden=[8]"]))
    (batch,) = Batches(parts.data.train, sequential(32, 32), seed=0)
    losses = state.strategy.step(state.model, state.tasks, *batch).losses
    assert [*losses] == ([arm.removeprefix("single_")] if "single" in arm else TARGETS)
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_the_features_are_the_numbers_and_scikit_learns_own_indicators(root, baseline):
    data = Flights(root)
    inputs, _ = data.train.batch(range(50), 0)
    sizes = data.input_info["categories"]
    encoder = OneHotEncoder(categories=[np.arange(size) for size in sizes], sparse_output=False)
    expected = np.concatenate([inputs["numbers"], encoder.fit_transform(inputs["categories"])], 1)
    np.testing.assert_array_equal(baseline.one_hot(inputs, sizes).toarray(), expected)


def test_the_linear_models_have_the_metrics_of_the_runs_and_learn_something(root, baseline):
    data = Flights(root)
    found = baseline.measure(data)
    assert {*found} == {f"{target}/{name}" for target in TARGETS for name in data.metrics(target)}
    assert found["late_arrival/auc"] > 0.7 and found["arrival_delay/r2"] > 0.2 and found["air_time/r2"] > 0.95
    _, targets = data.test.batch(range(len(data.test)), 0)
    batches = {split: getattr(data, split).batch(range(len(getattr(data, split))), 0) for split in ("train", "test")}
    features = {
        split: baseline.one_hot(inputs, data.input_info["categories"]) for split, (inputs, _) in batches.items()
    }
    late = baseline.fit_and_predict(features, batches["train"][1]["late_arrival"])
    known = targets["late_arrival"] >= 0
    auc = roc_auc_score(targets["late_arrival"][known], late[known, 1])
    assert found["late_arrival/auc"] == pytest.approx(auc, rel=1e-6)
