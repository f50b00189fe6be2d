"""What mtl-predict costs over a bare loop of loader and model, and what its start costs: ratios measured in turn."""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

import mtl
from mtl.config import load as compose
from mtl.data import image_table
from mtl.predict import _parser, predict
from mtl.train import train

HERE = Path(__file__).parent
SMALL = ["data.image_size=32", "trainer.max_steps=20", "tracker=jsonl", "trainer.examples=0", "device=cpu"]


class Files(Dataset):
    """The images, as anybody's loop would read them with the model's own transform."""

    def __init__(self, files: list[Path], preprocess) -> None:
        self.files, self.preprocess = files, preprocess

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.preprocess(self.files[index])


def make(root: Path, count: int) -> tuple[Path, Path]:
    """A trained run, and a folder of ``count`` images of 32×32 pixels."""
    image_table.make_fixture(root / "data", rows=60)
    train(compose(["data=image_table", f"data.root={root / 'data'}", *SMALL]), root / "run")
    (root / "new").mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3)).astype(np.uint8)).save(root / "new" / f"{i:05}.png")
    return root / "run", root / "new"


def bare(run: Path, new: Path, batch_size: int) -> None:
    """A loop of a loader and the model, from the same checkpoint: what every prediction needs at least."""
    predictor = mtl.load(run, device="cpu")
    loader = DataLoader(Files(sorted(new.glob("*.png")), predictor.preprocess), batch_size)
    with torch.inference_mode():
        for images in loader:
            for output in predictor.model(images).values():
                output.softmax(1).max(1)


def command(run: Path, new: Path, batch_size: int, out: Path) -> None:
    """mtl-predict in this process, with its rows on the disk and its table."""
    options = ["--out", str(out), "--overwrite", "--device", "cpu", "--batch-size", str(batch_size)]
    predict(_parser().parse_args([str(run), str(new), *options]))


def clocked(work, *arguments) -> tuple[float, float]:
    """Seconds of the CPU and of the wall."""
    cpu, wall = time.process_time(), time.perf_counter()
    work(*arguments)
    return time.process_time() - cpu, time.perf_counter() - wall


def started(*arguments: str) -> tuple[float, float]:
    """The same of a process of its own."""
    before, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = sum(getattr(after, name) - getattr(before, name) for name in ("ru_utime", "ru_stime"))
    return cpu, time.perf_counter() - wall


def main() -> None:
    """Measure in turn, print the medians and write results.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64)
    given = parser.parse_args()
    torch.set_num_threads(1)
    loops: dict[str, list[tuple[float, float]]] = {"bare": [], "mtl-predict": []}
    starts: dict[str, list[tuple[float, float]]] = {"imports": [], "mtl-predict": []}
    with tempfile.TemporaryDirectory() as folder:
        run, new = make(Path(folder), given.images)
        bare(run, new, given.batch_size)  # files and libraries come into memory
        for _ in range(given.rounds):
            loops["bare"].append(clocked(bare, run, new, given.batch_size))
            loops["mtl-predict"].append(clocked(command, run, new, given.batch_size, Path(folder) / "p.csv"))
        for _ in range(given.starts):
            starts["imports"].append(started("-c", "import torch, timm, torchvision, torchmetrics, pandas, hydra"))
            starts["mtl-predict"].append(
                started("-m", "mtl.predict", str(run), str(next(new.iterdir())), "--device", "cpu")
            )
    names = ("cpu", "wall")
    ratios = [
        [b / a for a, b in zip(*pair, strict=True)] for pair in zip(loops["bare"], loops["mtl-predict"], strict=True)
    ]
    result = {
        "images": given.images,
        "ratio": {name: statistics.median(row[i] for row in ratios) for i, name in enumerate(names)},
        "ratios": [dict(zip(names, row, strict=True)) for row in ratios],
        "seconds": {key: [dict(zip(names, row, strict=True)) for row in rows] for key, rows in loops.items()},
        "start": {key: dict(zip(names, np.median(rows, axis=0).tolist(), strict=True)) for key, rows in starts.items()},
        "starts": {key: [dict(zip(names, row, strict=True)) for row in rows] for key, rows in starts.items()},
        "torch": torch.__version__,
    }  # fmt: skip
    print(json.dumps({key: result[key] for key in ("images", "ratio", "start")}, indent=2))
    (HERE / "results.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
