"""Logistic and linear regression of scikit-learn, beside the models: the same inputs, splits and metrics.

python experiments/flights/baseline.py
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix, hstack
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import OneHotEncoder

from mtl.config import load
from mtl.config.instantiate import make

SPLITS = ("train", "test")


def one_hot(inputs: dict[str, torch.Tensor], sizes: list[int]) -> csr_matrix:
    """The standardised numbers beside an indicator of every category."""
    encoder = OneHotEncoder(categories=[np.arange(size) for size in sizes])
    return hstack([csr_matrix(inputs["numbers"].numpy()), encoder.fit_transform(inputs["categories"].numpy())], "csr")


def predict(fitted: Any, features: csr_matrix) -> torch.Tensor:
    """What a head would have given: the logarithms of the classes' probabilities, or one standardised number."""
    found = fitted.predict_log_proba(features) if hasattr(fitted, "predict_log_proba") else fitted.predict(features)
    return torch.from_numpy(found).float().reshape(len(found), -1)


def measure(data: Any) -> dict[str, dict[str, float]]:
    """Fit a regression for every target on its labelled training rows; its metrics on the test rows."""
    batches = {split: (own := getattr(data, split)).batch(range(len(own)), 0) for split in SPLITS}
    features = {split: one_hot(inputs, data.input_info["categories"]) for split, (inputs, _) in batches.items()}
    rows = {}
    for target in data.targets:
        labels = {split: targets[target] for split, (_, targets) in batches.items()}
        is_class = not labels["train"].is_floating_point()
        known = (labels["train"] >= 0) if is_class else ~labels["train"].isnan().any(1)
        model = LogisticRegression(max_iter=1000) if is_class else Ridge()
        fitted = model.fit(
            features["train"][known.numpy()], labels["train"][known].numpy().reshape(known.sum(), -1)[:, 0]
        )
        rows[target] = {}
        for name, metric in data.metrics(target).items():
            metric.update(predict(fitted, features["test"]), labels["test"])
            rows[target][name] = float(metric.compute())
    return rows
