"""The toy problem: values, gradients, Pareto front; and that its study equals the ordinary command."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from mtl.config import load
from mtl.config.build import build
from mtl.data.toy import PassOn, Toy, ToyLoss, front, on_front
from mtl.errors import ConfigError
from mtl.runs import checkpoint
from mtl.runs.files import read_metrics
from mtl.train import train

STUDY = Path(__file__).parents[2] / "experiments" / "toy" / "run.py"
# Both sides of v = 0, the valleys of the logarithms (where its argument is below the floor, too), far away.
POINTS = [
    (-8.5, 7.5), (9.0, 9.0), (-7.5, -0.5), (9.0, -1.0), (1.0, 2.0), (-5.0, 3.0), (3.3, -4.0), (0.0, -8.36), (6.0, 0.5),
    (2 * math.tanh(1.0) - 7, 1.0), (7 - 2 * math.tanh(1.5), 1.5),
]  # fmt: skip


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location("toy_study", STUDY)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def published(u, v):
    """Both losses as in the official codes, in Python floats."""
    p = max(math.tanh(0.5 * v), 0)
    f1 = math.log(max(abs(0.5 * (-u - 7) - math.tanh(-v)), 0.000005)) + 6
    f2 = math.log(max(abs(0.5 * (-u + 3) + math.tanh(-v) + 2), 0.000005)) + 6
    q = max(math.tanh(-0.5 * v), 0)
    f1_sq = ((-u + 7) ** 2 + 0.1 * (-v - 8) ** 2) / 10 - 20
    f2_sq = ((-u - 7) ** 2 + 0.1 * (-v - 8) ** 2) / 10 - 20
    return np.array([f1 * p + f1_sq * q, f2 * p + f2_sq * q])


def ours(u, v, scales=(1.0, 1.0)):
    """Both losses [2] and their gradients [2, 2]."""
    theta = torch.tensor([[u, v]], dtype=torch.float64, requires_grad=True)
    losses = [PassOn()(ToyLoss(i + 1, scale)(theta), torch.tensor([i + 1])) for i, scale in enumerate(scales)]
    gradients = [torch.autograd.grad(loss, theta)[0][0].numpy() for loss in losses]
    return np.array([loss.item() for loss in losses]), np.stack(gradients)


@pytest.mark.parametrize("point", POINTS)
def test_the_losses_are_the_published_ones(point):
    losses, _ = ours(*point)
    np.testing.assert_allclose(losses, published(*point), rtol=0, atol=1e-12)
    u, v = point
    assert np.abs(losses - published(u + 1e-3, v - 1e-3)).max() > 1e-6  # negative control


@pytest.mark.parametrize("point", POINTS[:-2])
def test_the_gradients_are_those_of_finite_differences(point):
    u, v = point
    step = 1e-5
    differences = np.stack(
        [published(u + step, v) - published(u - step, v), published(u, v + step) - published(u, v - step)], axis=1
    ) / (2 * step)
    np.testing.assert_allclose(ours(*point)[1], differences, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("point", POINTS[-2:])
def test_below_the_logarithms_floor_there_is_no_slope_along_u(point):
    _, gradients = ours(*point)
    assert 0 in gradients[:, 0]


def test_scales_scale():
    losses, gradients = ours(1.0, -2.0, scales=(0.1, 1.0))
    np.testing.assert_allclose(losses, ours(1.0, -2.0)[0] * [0.1, 1], rtol=1e-14)
    np.testing.assert_allclose(gradients, ours(1.0, -2.0)[1] * [[0.1], [1]], rtol=1e-14)


def test_the_origin_is_no_trap():
    # torch.clamp has no gradient there from torch 2.14 on: both halves' slopes are wanted, (A - B) / 2 along v.
    losses, gradients = ours(0.0, 0.0)
    slope = (math.log(3.5) + 6 - ((49 + 6.4) / 10 - 20)) / 2
    np.testing.assert_allclose(gradients, [[0, slope], [0, slope]], rtol=1e-14)
    assert slope == pytest.approx(10.856, abs=1e-3) and not losses.any()


def test_the_front_is_where_the_gradients_cancel():
    np.testing.assert_allclose(front(np.array([-7.0, 0.0, 7.0])), [-8.4345, -8.3551, -8.4345], atol=5e-5)
    for u in np.linspace(-6.9, 6.9, 8):
        (v,) = front(np.array([u]))
        norms = np.linalg.norm(ours(u, v)[1], axis=1)
        first, second = ours(u, v)[1] / norms[:, None]
        assert np.abs(first + second).max() < 1e-10
        first, second = ours(u, v + 0.1)[1] / norms[:, None]
        assert np.abs(first + second).max() > 1e-4  # negative control


def test_what_counts_as_on_the_front():
    assert on_front(0.0, -8.2) and on_front(7.2, -8.4345)
    assert not on_front(0.0, -8.0) and not on_front(-7.3, -8.4345) and not on_front(0.0, 8.3551)
    for u in (-6.0, 0.0, 6.0):  # what the tolerance lets through is small in the losses
        (v,) = front(np.array([u]))
        assert np.abs(ours(u, v + 0.25)[0] - ours(u, v)[0]).max() < 0.003


def test_the_optimum_of_the_mean():
    losses, gradients = ours(0.0, front(np.zeros(1))[0])
    np.testing.assert_allclose(losses, -15.0916, atol=1e-4)
    np.testing.assert_allclose(gradients.sum(0), 0, atol=1e-10)


@pytest.mark.parametrize(("experiment", "strategy"), [("toy", "mgda"), ("toy", "detached"), ("toy_cagrad", "pcgrad")])
def test_the_experiment_runs_and_logs_the_point(tmp_path, experiment, strategy):
    arguments = [f"+experiment={experiment}", f"strategy={strategy}", "data.start=2"]
    train(load([*arguments, "trainer.max_steps=20", "trainer.val_every=10"]), tmp_path / "run")
    rows = read_metrics(tmp_path / "run", "val")
    assert [row["step"] for row in rows] == [10, 20]
    for row in rows:
        assert row["l1/u"] == row["l2/u"] and row["l1/v"] == row["l2/v"]
        losses = published(row["l1/u"], row["l1/v"]) * [0.1 if experiment == "toy" else 1, 1]
        np.testing.assert_allclose([row["loss/l1"], row["loss/l2"]], losses, rtol=1e-12)
    assert rows[1]["l1/u"] == pytest.approx(9 - 20e-3, abs=2e-3)  # Adam's first steps are as long as its rate
    assert rows[1]["l1/v"] == pytest.approx(9 - 20e-3, abs=2e-3)


@pytest.mark.parametrize(("rule", "other"), [("mgda", "cagrad"), ("nash_mtl", "mgda")])
def test_the_study_follows_the_ordinary_run_to_the_last_bit(tmp_path, study, rule, other):
    arguments = study.overrides("toy", rule, 3)
    train(load([*arguments, "trainer.max_steps=100"]), tmp_path / "run")
    theta = checkpoint.load(tmp_path / "run")["model"]["backbone.theta"].tolist()
    *_, (step, u, v, l1, l2) = study.trajectory(arguments, steps=100)
    assert step == 100 and [u, v] == theta
    np.testing.assert_allclose([l1, l2], published(u, v) * [0.1, 1], rtol=1e-12)
    assert [*study.trajectory(study.overrides("toy", other, 3), steps=100)[-1][1:3]] != theta  # negative control


def test_every_rule_of_the_study_takes_a_step(study):
    for rule in study.RULES:
        rows = study.trajectory(study.overrides("toy", rule, 0), steps=2)
        assert len(rows) == 2 and rows[0][1:3] == (-8.5, 7.5) and rows[-1][1] > -8.5


def test_the_study_writes_its_table_and_figure(tmp_path, study):
    rows = {("toy", "mgda", i): np.array([[0, *start, 1, 2], [9, 0, -8.3551, 3, 4]]) for i, start in
            enumerate(study.starts("toy"))}  # fmt: skip
    study.write(tmp_path / "table.csv", rows)
    again = study.read(tmp_path / "table.csv")
    assert again.keys() == rows.keys()
    assert all(np.array_equal(again[job], rows[job]) for job in rows)
    table = study.end_points(again, "toy").splitlines()
    assert len(table) == 3 and table[2].count("3.00, 4.00 · u 0.00") == 5 and "missed" not in table[2]
    study.draw(again, "toy", tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


# Robust against moving the start by 1e-3; MGDA's run ends early, where the point rests.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "start", "reached"),
    [
        ("mgda", 1, True), ("mgda", 3, True), ("nash_mtl", 3, True), ("imtl_g", 4, True),
        ("sum", 2, False), ("pcgrad", 2, False), ("cagrad", 2, False),
    ],
)  # fmt: skip
def test_the_front_is_reached_or_missed_as_published(study, rule, start, reached):
    *_, (_, u, v, _, _) = study.trajectory(study.overrides("toy", rule, start))
    assert on_front(u, v) == reached


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.start=5", "data: start=5 must be from 0 to 4, or a point"),
        ("data.start=-1", "data: start=-1 must be from 0 to 4"),
        ("data.start=[1,2,3]", r"data: start=\[1, 2, 3\] must be two numbers"),
        ("heads.l1.number=3", "heads.l1: number=3 must be 1 or 2"),
        ("heads.l1.scale=0", "heads.l1: scale=0 must be above 0"),
        ("backbone=tiny_resnet", "backbone: .*shape"),
    ],
)
def test_a_mistake_is_named(override, message):
    with pytest.raises(ConfigError, match=message):
        build(load(["+experiment=toy", override]))


def test_a_start_may_be_a_point():
    assert Toy(start=[3.0, -2.0]).input_info == {"start": [3.0, -2.0]}
    _, state = build(load(["+experiment=toy", "data.start=[3,-2]"]))
    assert state.model.backbone.theta.tolist() == [3, -2] and state.model.backbone.theta.dtype == torch.float64
