"""Metrics of attributes and masks against scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from support.measured import accumulated, split

from mtl import metrics

NAN = math.nan


def test_attributes_count_what_has_a_label():
    torch.manual_seed(3)
    logits, target = torch.rand(6, 4) * 2 - 0.5, (torch.rand(6, 4) < 0.5).float()  # one batch is all within 0 and 1
    logits[0].clamp_(0, 1)
    target[2, 1] = target[4, 3] = NAN
    known = ~target.isnan()
    single = accumulated(metrics.attributes(), split(logits, target))
    y, p = target[known].numpy(), (logits[known] > 0).numpy()
    assert single == {
        "f1": pytest.approx(sk.f1_score(y, p)),
        "accuracy": pytest.approx(sk.accuracy_score(y, p)),
    }
    several = accumulated(metrics.attributes(4), split(logits, target))
    columns = [(target[:, i][known[:, i]].numpy(), (logits[:, i][known[:, i]] > 0).numpy()) for i in range(4)]
    assert several["f1"] == pytest.approx(np.mean([sk.f1_score(y, p) for y, p in columns]))
    assert several["accuracy"] == pytest.approx(np.mean([sk.accuracy_score(y, p) for y, p in columns]))
    assert several["f1"] != pytest.approx(single["f1"], rel=1e-3)


def test_the_best_threshold_is_one_for_the_set():
    torch.manual_seed(4)
    logits, target = torch.randn(6, 1, 9, 9), (torch.rand(6, 1, 9, 9) < 0.2).float()
    logits += target - torch.arange(6.0).view(6, 1, 1, 1) / 2
    target[1, 0, :2] = NAN
    found = accumulated(metrics.saliency(), split(logits, target))
    known = ~target.isnan()
    y, p = target[known].numpy(), logits.sigmoid()[known].numpy()
    scores = [(sk.f1_score(y, p >= t), sk.jaccard_score(y, p >= t)) for t in np.linspace(0, 1, 101)]
    assert found["max_f"] == pytest.approx(max(f for f, _ in scores))
    assert found["max_iou"] == pytest.approx(max(j for _, j in scores))
    assert found["max_f"] > 1.1 * sk.f1_score(y, p >= 0.5)
    assert list(metrics.edges()) == ["max_f"]
