"""What is measured: the cells of the short and of the long form. Nothing here imports torch, so that a mistake on the
command line is answered at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import product
from typing import Any

TASKS = (1, 2, 4, 8, 16, 40)
# A batch that takes two cores about the same time on every trunk.
BATCH = {
    "resnet18-64": 32,
    "resnet18-128": 16,
    "vit_tiny-64": 64,
    "convnext_atto-64": 32,
    "transformer": 4,
}
ON_GPU = 32  # times as many samples fill a GPU
OURS, PEERS = ("core", "rules", "parameters"), ("torchjd", "libmtl")


@dataclass(frozen=True)
class Cell:
    """One measurement, in a process of its own: a function of measure.py, what it is called with, and its time."""

    name: str
    kind: str
    arguments: dict[str, Any]
    seconds: float


def steps(
    trunk: str, heads: str, tasks: int, batch: int, groups: Sequence[str] = ("core",), seconds: float = 10
) -> Cell:
    """The steps of these groups side by side on one problem."""
    arguments = dict(trunk=trunk, heads=heads, tasks=tasks, batch=batch, groups=list(groups))
    return Cell(f"{trunk}-{heads}-k{tasks}-b{batch}", "steps", arguments, seconds)


def short() -> list[Cell]:
    """Ten minutes on two cores: every goal, the peers up to eight tasks."""
    many = [steps("resnet18-64", "linear", k, 32, OURS + (PEERS if k <= 8 else ()), 24) for k in TASKS]
    others = [
        steps("resnet18-128", "linear", 8, 16),
        steps("vit_tiny-64", "linear", 8, 64),
        steps("convnext_atto-64", "linear", 8, 32),
        steps("resnet18-64", "mlp", 8, 32),
        steps("resnet18-64", "dense", 4, 16, seconds=14),
        steps("transformer", "bytes", 8, 4, seconds=14),
        steps("transformer", "vocabulary", 4, 4, seconds=20),
    ]
    return [*many, *others, *_growth((8, 128), (4096, 32768)), *_others(rounds=3)]


def long() -> list[Cell]:
    """Hours: every trunk with every head and number of tasks, the peers always beside ours."""
    images, heads = [trunk for trunk in BATCH if trunk != "transformer"], ("linear", "mlp")
    grid = [*product(images, heads, TASKS), *product(["transformer"], ("bytes", "vocabulary"), TASKS)]
    grid += product(("resnet18-64", "resnet18-128", "convnext_atto-64"), ("dense",), TASKS[:5])
    cells = [steps(trunk, heads, k, BATCH[trunk], OURS + PEERS, 120) for trunk, heads, k in grid]
    return [*cells, *_growth((4, 8, 16, 64, 128, 256), (1024, 4096, 16384, 65536)), *_others(rounds=11)]


def _growth(batches: Sequence[int], widths: Sequence[int]) -> list[Cell]:
    """Beside the cell of K = 8 and 32 samples: other batch sizes, other numbers of features."""
    cells = [steps("resnet18-64", "linear", 8, batch) for batch in batches]
    return cells + [steps(f"resnet18-64+{width}", "linear", 8, 32) for width in widths]


def _others(rounds: int) -> list[Cell]:
    """What is no comparison of steps on one problem."""
    cells = [Cell(f"heads-alone-b{batch}", "heads_alone", {"tasks": 40, "batch": batch}, 8) for batch in (32, 128)]
    for trunk, heads, k in (
        ("resnet18-64", "linear", 8),
        ("resnet18-64", "linear", 40),
        ("transformer", "vocabulary", 4),
    ):
        arguments = dict(trunk=trunk, heads=heads, tasks=k, batch=BATCH[trunk])
        cells.append(Cell(f"parts-{trunk}-{heads}-k{k}", "parts", arguments, 8))
    for row in ("naive", "detached", "MGDA, features", "MGDA, parameters"):
        arguments = dict(trunk="transformer", heads="vocabulary", tasks=8, batch=4, row=row)
        cells.append(Cell(f"high-water-{row.replace(', ', '-').lower()}", "high_water", arguments, 1))
    for trunk, heads, k in (("resnet18-64", "linear", 8), ("transformer", "vocabulary", 4)):
        arguments = dict(trunk=trunk, heads=heads, tasks=k, batch=BATCH[trunk])
        cells.append(Cell(f"bf16-{trunk}", "bf16", arguments, 10))
    return [
        *cells,
        Cell("loop", "loop", {}, 24),
        Cell("start-up", "startup", {"rounds": rounds}, 1),
        Cell("demo", "demo", {}, 1),
    ]


def chosen(patterns: Sequence[str], every: Sequence[Cell]) -> list[Cell]:
    """The cells whose names match one of ``patterns``; all where there are none. ValueError for one without a match."""
    names = [cell.name for cell in every]
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in names):
            close = difflib.get_close_matches(pattern, names, n=3, cutoff=0)
            raise ValueError(f"--only {pattern} matches no cell; the closest of {len(names)} are {', '.join(close)}.")
    return [cell for cell in every if not patterns or any(fnmatch(cell.name, p) for p in patterns)]


def on_gpu(cells: Sequence[Cell]) -> list[Cell]:
    """Those that mean something on a GPU, with batches that fill it."""
    kept = [cell for cell in cells if cell.kind in ("steps", "heads_alone", "parts", "bf16")]
    return [
        Cell(cell.name, cell.kind, cell.arguments | {"batch": ON_GPU * cell.arguments["batch"]}, cell.seconds)
        for cell in kept
    ]
