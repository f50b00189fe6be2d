"""The fronts of results.csv as a picture: python experiments/pareto/figure.py outputs/pareto/results.csv fronts.png."""

import sys

import matplotlib.pyplot as plt
import pandas as pd

X, Y = "test/left/accuracy", "test/right/accuracy"


def main(table, picture):
    """Draw a line for each method through the means over the seeds of its preferences."""
    runs = pd.read_csv(table)
    means = runs.assign(method=runs["label"].str.split().str[0]).groupby(["method", "label"])[[X, Y]].mean()
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for method, points in means.groupby("method"):
        points = points.sort_values(X)
        axes.plot(points[X], points[Y], "o-", label=method)
    axes.set(xlabel="left/accuracy, test", ylabel="right/accuracy, test")
    axes.legend()
    figure.savefig(picture, dpi=120)


if __name__ == "__main__":
    main(*sys.argv[1:])
