"""What all metrics have: a direction, and states that add up over processes."""

import copy
import math

import pytest
import torch
from support.measured import depth_batches, normal_batches

from mtl import metrics

NAN = math.nan


def test_every_metric_says_which_way_is_better():
    kinds = [
        metrics.classification(3), metrics.segmentation(3), metrics.depth(batch_mean=True), metrics.regression(),
        metrics.normals(batch_mean=True), metrics.attributes(), metrics.attributes(3),
        metrics.edges(), metrics.saliency(), metrics.probabilities(2), metrics.ranking(2), metrics.counts([""]),
        metrics.determination([""]),
    ]  # fmt: skip
    for named in kinds:
        for name, metric in named.items():
            error = "err" in name or name.startswith(("angle", "rmse", "log_loss"))
            assert metric.higher_is_better is not error, name


def test_states_of_two_processes_add_up():
    """Every state has the reduction sum, so that what two ranks saw is what one would have seen."""
    depths, normals = depth_batches(), normal_batches()
    binary = [(torch.randn(2, 3), torch.ones(2, 3)), (torch.randn(2, 3), torch.tensor([[0.0, 1, NAN]] * 2))]
    maps = [(torch.randn(2, 4, 3, 3), torch.randint(4, (2, 3, 3))) for _ in range(2)]
    kinds = [
        (metrics.depth(batch_mean=True), depths),
        (metrics.normals(batch_mean=True), normals),
        (metrics.segmentation(4), maps),
        (metrics.attributes(), binary),
        (metrics.attributes(3), binary),
        (metrics.saliency(), binary),
    ]
    for named, batches in kinds:
        for name, metric in named.items():
            other = copy.deepcopy(metric)
            metric.update(*batches[0])
            other.update(*batches[1])
            alone = metric.compute().item()
            for state, reduction in metric._reductions.items():
                setattr(metric, state, reduction(torch.stack([getattr(metric, state), getattr(other, state)])))
            metric._computed = None
            together = metric.compute().item()
            metric.reset()
            metric.update(*batches[0])
            metric.update(*batches[1])
            assert together == pytest.approx(metric.compute().item(), rel=1e-6), name
            assert together != pytest.approx(alone, rel=1e-6), name
