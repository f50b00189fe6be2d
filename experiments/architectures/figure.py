"""Test metrics of a report's rows with their intervals, from its results.csv.

python experiments/architectures/figure.py experiments/architectures/results.csv
python experiments/architectures/figure.py experiments/relatedness/results.csv --metrics loss/first loss/second
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

from mtl.report.statistics import interval


def values_by_row(file: Path, metric: str) -> dict[str, list[float]]:
    """The metric's values over the seeds, by the label of every selected row that has it."""
    found: dict[str, list[float]] = {}
    with file.open(newline="") as lines:
        for line in csv.DictReader(lines):
            value = line.get(f"test/{metric}")
            if value and line["selected"] == "True" and line["status"] == "finished":
                found.setdefault(line["label"].removeprefix("Detached "), []).append(float(value))
    return found


def main() -> None:
    """One panel a metric, one line a row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--metrics", nargs="+", default=["left/accuracy", "sum/accuracy"])
    options = parser.parse_args()
    found = {metric: values_by_row(options.results, metric) for metric in options.metrics}
    labels = list(dict.fromkeys(label for rows in found.values() for label in rows))[::-1]
    figure, panels = plt.subplots(1, len(found), figsize=(4.6 * len(found), 1 + 0.3 * len(labels)), sharey=True)
    for panel, (metric, rows) in zip(panels, found.items(), strict=True):
        for label, values in rows.items():
            own = interval(values)
            panel.errorbar(own.mean, labels.index(label), xerr=own.half, fmt="o", color="#24589b", capsize=3)
            panel.plot(values, [labels.index(label) - 0.25] * len(values), "|", color="#5d636d", markersize=5)
        panel.set_title(metric)
        panel.grid(axis="x", alpha=0.3)
        panel.set_yticks(range(len(labels)), labels)
    figure.tight_layout()
    figure.savefig(options.results.with_suffix(".png"), dpi=110)
    print(options.results.with_suffix(".png"))


if __name__ == "__main__":
    main()
