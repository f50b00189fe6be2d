"""Rankings against scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from support.measured import updated

from mtl import metrics

NAN = math.nan


def test_a_ranking_is_the_mean_over_the_labels_that_have_both_values():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(60, 3, generator=generator)
    target = (torch.rand(60, 3, generator=generator) < 0.4).float()
    target[::4, 0], target[:, 2] = NAN, 1.0
    found = updated(metrics.ranking(3), logits, target)
    known = [~target[:, i].isnan() for i in (0, 1)]
    areas = [sk.roc_auc_score(target[k, i], logits[k, i]) for i, k in enumerate(known)]
    precisions = [sk.average_precision_score(target[k, i], logits[k, i]) for i, k in enumerate(known)]
    expected = {"auc": np.mean(areas), "average_precision": np.mean(precisions)}
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("value", [0, 1, -100])
def test_a_ranking_without_both_values_is_no_number(value):
    found = updated(metrics.probabilities(2), torch.randn(10, 2), torch.full((10,), value))
    assert math.isnan(found["auc"]) and math.isnan(found["average_precision"])
