"""Metrics of normals against numpy in double precision."""

import math

import numpy as np
import pytest
import torch
from support.measured import accumulated, normal_batches

from mtl import metrics


def angles(batches):
    for prediction, target in batches:
        p, t = (x.movedim(1, -1).reshape(-1, 3).double().numpy() for x in (prediction, target))
        p, t = p[np.abs(t).sum(1) > 0], t[np.abs(t).sum(1) > 0]
        cosine = (p * t).sum(1) / np.linalg.norm(p, axis=1) / np.linalg.norm(t, axis=1)
        yield np.degrees(np.arccos(cosine.clip(-1, 1)))


def test_normals_in_both_conventions():
    batches = normal_batches()
    found = accumulated(metrics.normals(batch_mean=True), batches)
    by_batch = list(angles(batches))
    every = np.concatenate(by_batch)
    assert found["angle_mean"] == pytest.approx(every.mean(), rel=1e-5)
    lower = np.sort(every)[(len(every) - 1) // 2]
    assert abs(found["angle_median"] - lower) <= 0.01
    assert found["angle_mean_batch_mean"] == pytest.approx(np.mean([a.mean() for a in by_batch]), rel=1e-5)
    medians = [np.sort(a)[(len(a) - 1) // 2] for a in by_batch]
    assert found["angle_median_batch_mean"] == pytest.approx(np.mean(medians), rel=1e-4)
    for limit in (11.25, 22.5, 30):
        assert found[f"within_{limit}"] == pytest.approx((every < limit).mean(), rel=1e-5)
        assert found[f"within_{limit}_batch_mean"] == pytest.approx(np.mean([(a < limit).mean() for a in by_batch]))
    assert abs(found["angle_median"] - found["angle_median_batch_mean"]) > 0.01
    assert len(found) == 10 and set(metrics.normals()) == {name for name in found if "batch" not in name}


def test_the_median_of_a_few_angles():
    for degrees in ([10.0], [10.0, 40.0], [180.0, 0.0, 90.0], [5.0] * 4 + [179.0]):
        radians = torch.tensor(degrees).deg2rad()
        prediction = torch.stack([radians.cos(), radians.sin(), torch.zeros_like(radians)])[None, :, None]
        target = torch.tensor([1.0, 0.0, 0.0])[None, :, None, None].expand(prediction.shape)
        metric = metrics.MedianAngle()
        metric.update(prediction, target)
        assert metric.compute().item() == pytest.approx(sorted(degrees)[(len(degrees) - 1) // 2], abs=0.011)


def test_small_angles_are_not_rounded_and_no_direction_is_a_right_angle():
    target = torch.tensor([0.6, 0.0, 0.8])[None, :, None, None]
    tilted = target + torch.tensor([0.8, 0.0, -0.6])[None, :, None, None] * 1e-5
    assert metrics.angle(tilted, target).item() == pytest.approx(math.degrees(1e-5), rel=0.05)
    assert metrics.angle(torch.zeros_like(target), target).item() == 90
