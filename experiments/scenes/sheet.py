"""The example pictures of a run on one sheet: python experiments/scenes/sheet.py RUN [--out FILE]"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image


def sheet(run: Path) -> Figure:
    """A row for each of the first five samples: its image, then the target and the prediction of every task."""
    folder = run / "examples"
    samples = json.loads((folder / "examples.json").read_text())[:5]
    tasks = list(dict.fromkeys(task for sample in samples for task in sample["tasks"]))
    columns = 1 + 2 * len(tasks)
    figure = Figure(figsize=(1.2 * columns, 1.25 * len(samples)), layout="constrained")
    for row, sample in zip(figure.subplots(len(samples), columns, squeeze=False), samples, strict=True):
        shown = [("image", sample["image"])]
        for task in tasks:
            shown += [
                (f"{task}\n{name}", sample["tasks"].get(task, {}).get(name, "")) for name in ("target", "prediction")
            ]
        for axes, (title, what) in zip(row, shown, strict=True):
            axes.axis("off")
            if sample is samples[0]:
                axes.set_title(title, fontsize=7)
            if what.endswith(".png"):
                axes.imshow(Image.open(folder / what))
            else:
                axes.text(0.5, 0.5, what, ha="center", va="center", fontsize=7)
    return figure


def main() -> None:
    """Draw one run's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a run's folder")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "examples.png")
    options = parser.parse_args()
    sheet(options.run).savefig(options.out, dpi=75)


if __name__ == "__main__":
    main()
