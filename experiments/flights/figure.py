"""The study's figure: a metric of every task, for each strategy, the task alone and the linear model.

python experiments/flights/figure.py outputs/flights/results.csv
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from scipy.stats import t

HERE = Path(__file__).parent
METRICS = {
    "cancelled/average_precision": "↑", "late_departure/auc": "↑", "late_arrival/auc": "↑", "arrival_delay/r2": "↑",
    "air_time/abs_err": "minutes ↓",
}  # fmt: skip
ALONE = "alone"


def interval(values: pd.Series) -> float:
    """Half the width of the 95 % interval of the mean, by Student's t."""
    return float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5)


def main() -> None:
    """Write flights.png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?", default=HERE / "results.csv")
    options = parser.parse_args()
    runs = pd.read_csv(options.results)
    # A run of one task has the label of its strategy with the task's name; all of them are one row here.
    runs["row"] = runs["label"].where(runs["tasks"].isna(), ALONE)
    linear = pd.read_csv(HERE / "baseline.csv", index_col="metric")["value"]
    rows = [*sorted({*runs["row"]} - {ALONE}), ALONE]
    figure, axes = plt.subplots(1, len(METRICS), figsize=(14, 3.2), sharey=True, layout="constrained")
    for axis, (metric, direction) in zip(axes, METRICS.items(), strict=True):
        found = runs.dropna(subset=[f"test/{metric}"]).groupby("row")[f"test/{metric}"]
        axis.errorbar(found.mean()[rows], range(len(rows)), xerr=found.apply(interval)[rows], fmt="o", capsize=3)
        axis.axvline(linear[metric], color="C1", linestyle="--", label="linear model")
        axis.set_title(f"{metric} {direction}", fontsize=9)
        axis.set_yticks(range(len(rows)), rows)
    axes[0].legend(fontsize=8)
    figure.savefig(HERE / "flights.png", dpi=120)


if __name__ == "__main__":
    main()
