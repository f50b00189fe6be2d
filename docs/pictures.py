"""The pictures of docs/guide/conflict.md, drawn when the site is built."""

import matplotlib.pyplot as plt
import torch

from mtl.conflict import conflict_metrics
from mtl.rules import MGDA

BLUE, ORANGE, GREY, GREEN = "#1f77b4", "#ff7f0e", "#888888", "#2ca02c"
PAIRS = {
    "parallel": [[1.0, 0.0], [1.0, 0.0]],
    "orthogonal": [[1.0, 0.0], [0.0, 1.0]],
    "in conflict": [[1.0, 0.0], [-0.5, 0.866]],
    "in conflict, 4 : 1": [[1.2, 0.0], [-0.15, 0.26]],
}
SHOWN = {"cos_mean": "cosine", "magnitude_similarity": "similar lengths", "cancellation": "cancellation",
         "stationarity": "stationarity"}  # fmt: skip


def pairs():
    """Two gradients in the plane, their sum, and the shortest convex combination, with the metrics."""
    figure, axes = plt.subplots(1, len(PAIRS), figsize=(10, 2.9), layout="constrained")
    for axis, (title, rows) in zip(axes, PAIRS.items(), strict=True):
        gradients = torch.tensor(rows)
        gram = gradients @ gradients.T
        if title == "parallel":
            gradients = gradients + torch.tensor([[0.0, 0.03], [0.0, -0.03]])  # side by side, to be seen
        shortest = MGDA()(gram).float() @ gradients
        arrows = [(gradients.sum(0), GREY), (gradients[0], BLUE), (gradients[1], ORANGE), (shortest, GREEN)]
        for (x, y), colour in [(vector.tolist(), colour) for vector, colour in arrows]:
            axis.annotate(
                "", (x, y), (0, 0), arrowprops={"color": colour, "width": 1.2, "headwidth": 7, "headlength": 7}
            )
        metrics = conflict_metrics(gram, ["a", "b"])
        lines = [f"{name} {metrics[f'conflict/{key}']:.2f}" for key, name in SHOWN.items()]
        axis.set(xlim=(-0.8, 2.1), ylim=(-0.2, 1.15), title=title, xticks=[], yticks=[], aspect="equal")
        axis.text(0.5, -0.08, "\n".join(lines), transform=axis.transAxes, ha="center", va="top")
        axis.spines[:].set_visible(False)
        axis.plot(0, 0, "o", color="black", markersize=3)
    return figure


def noise():
    """How the cosine of two random directions spreads, by their dimension."""
    figure, axis = plt.subplots(figsize=(8, 2.8), layout="constrained")
    torch.manual_seed(0)
    for dimension, colour in zip((10, 100, 1000, 10000), ("#c6dbef", "#6baed6", "#2171b5", "#08306b"), strict=True):
        a, b = torch.randn(2, 1000, dimension)
        cosines = torch.nn.functional.cosine_similarity(a, b)
        counts = torch.histc(cosines, 161, -0.8, 0.8)
        axis.step(torch.linspace(-0.8, 0.8, 161), counts / counts.max(), color=colour, label=f"D = {dimension}")
    axis.axvline(-0.05, color=ORANGE, linestyle=":", label="−conflict.tolerance")
    axis.set(xlabel="cosine of two random directions", yticks=[], ylim=(0, 1.1))
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.legend(frameon=False)
    return figure
