"""Metrics of numbers against scikit-learn and loops over single pixels."""

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from support.measured import accumulated, depth_batches, updated

from mtl import metrics

NAN = math.nan


def depth_errors(batches):
    for prediction, target in batches:
        known = [(p, t) for p, t in zip(prediction.flatten().tolist(), target.flatten().tolist(), strict=True) if t > 0]
        yield [abs(p - t) for p, t in known], [abs(p - t) / t for p, t in known]


def test_depth_in_both_conventions():
    batches = depth_batches()
    found = accumulated(metrics.depth(batch_mean=True), batches)
    absolute, relative = zip(*depth_errors(batches), strict=True)
    assert found["abs_err"] == pytest.approx(np.mean(np.concatenate(absolute)), rel=1e-5)
    assert found["rel_err"] == pytest.approx(np.mean(np.concatenate(relative)), rel=1e-5)
    assert found["rmse"] == pytest.approx(np.sqrt(np.mean(np.square(np.concatenate(absolute)))), rel=1e-5)
    assert found["abs_err_batch_mean"] == pytest.approx(np.mean([np.mean(e) for e in absolute]), rel=1e-5)
    assert found["rel_err_batch_mean"] == pytest.approx(np.mean([np.mean(e) for e in relative]), rel=1e-5)
    assert found["abs_err"] != pytest.approx(found["abs_err_batch_mean"], rel=1e-3)
    assert set(metrics.depth()) == {"abs_err", "rel_err", "rmse"}


def test_a_regression_takes_every_number_but_nan():
    target = torch.tensor([[0.0, 2.0], [NAN, -1.0]])
    found = accumulated(metrics.regression(), [(torch.ones(2, 2), target)])
    assert found == {"abs_err": pytest.approx(4 / 3), "rmse": pytest.approx(math.sqrt(2))}


def test_masked_means_refuse_shapes_that_torch_would_broadcast():
    with pytest.raises(ValueError, match=r"prediction \[4, 1\] and target \[4\] differ in shape"):
        metrics.regression()["abs_err"].update(torch.zeros(4, 1), torch.zeros(4))


def test_determination_and_counts_are_scikit_learns():
    generator = torch.Generator().manual_seed(2)
    logs = torch.randn(50, 2, generator=generator)
    target = torch.poisson(logs.exp(), generator=generator)
    target[::6, 0] = NAN
    found = updated(metrics.counts(["_a", "_b"]), logs, target)
    plain = updated(metrics.determination(["_a", "_b"]), logs, target)
    for i, name in enumerate("ab"):
        known = ~target[:, i].isnan()
        y, p = target[known, i].double().numpy(), logs[known, i].double().exp().numpy()
        assert found[f"r2_{name}"] == pytest.approx(sk.r2_score(y, p), rel=1e-6)
        assert found[f"abs_err_{name}"] == pytest.approx(sk.mean_absolute_error(y, p), rel=1e-5)
        assert found[f"rmse_{name}"] == pytest.approx(math.sqrt(sk.mean_squared_error(y, p)), rel=1e-5)
        assert plain[f"r2_{name}"] == pytest.approx(sk.r2_score(y, logs[known, i].double().numpy()), rel=1e-6)
    assert math.isnan(updated(metrics.determination([""]), logs[:1], target[1:2])["r2"]), "of one number"
