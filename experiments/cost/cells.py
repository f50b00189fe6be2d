"""What is measured: the cells of the short and of the long form. Nothing here imports torch, so that a mistake on the
command line is answered at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from itertools import product
from typing import Any

TASKS = (1, 2, 4, 8, 16, 40)
# Batches that take about the same time on every trunk.
BATCH = {"resnet18-64": 16, "resnet18-128": 4, "vit_tiny-64": 16, "convnext_atto-64": 16, "transformer": 2}
ON_GPU = 64  # times as many samples fill a GPU
ALL = ("core", "rules", "parameters", "looking", "torchjd", "libmtl")  # the groups of steps in measure.py


@dataclass(frozen=True)
class Cell:
    """One measurement, in a process of its own: a function of measure.py, what it is called with, and its time."""

    name: str
    kind: str
    arguments: dict[str, Any]
    seconds: float


def steps(
    trunk: str,
    heads: str,
    tasks: int,
    batch: int | None = None,
    groups: Sequence[str] = ("core",),
    without: Sequence[str] = (),
    seconds: float = 8,
) -> Cell:
    """The steps of these groups side by side on one problem; ``without``: patterns of rows that are left out."""
    batch = batch or BATCH[trunk]
    arguments = dict(trunk=trunk, heads=heads, tasks=tasks, batch=batch, groups=list(groups), without=list(without))
    return Cell(f"{trunk}-{heads}-k{tasks}-b{batch}", "steps", arguments, seconds)


# The peers' rows that the short form has no time for: TorchJD's second rule at the parameters and LibMTL's detours. Its
# vmap over all rows, the slowest way on a CPU, stays up to four tasks.
LEFT_OUT = ["TorchJD mtl_backward MGDA*", "*chunk=None, optimize_gramian", "*chunk=4*", "LibMTL MGDA", "*rep_grad"]


def short() -> list[Cell]:
    """Twelve minutes on two cores, and every goal: the peers at two, four and eight tasks."""
    many = [
        steps("resnet18-64", "linear", 1, groups=["core", "rules"], seconds=15),
        steps("resnet18-64", "linear", 2, groups=ALL, without=LEFT_OUT, seconds=25),
        steps("resnet18-64", "linear", 4, groups=ALL, without=LEFT_OUT, seconds=25),
        steps("resnet18-64", "linear", 8, groups=ALL, without=[*LEFT_OUT, "*chunk=None"], seconds=25),
        steps("resnet18-64", "linear", 16, groups=["core", "rules"], seconds=20),
        steps("resnet18-64", "linear", 40, groups=["core", "rules"], seconds=25),
    ]
    others = [
        steps("resnet18-128", "linear", 8, seconds=12),
        steps("vit_tiny-64", "linear", 8, seconds=12),
        steps("convnext_atto-64", "linear", 8, seconds=12),
        steps("resnet18-64", "mlp", 8, seconds=12),
        steps("resnet18-64", "dense", 4, batch=8, seconds=12),
        steps("transformer", "bytes", 8, seconds=12),
        steps("transformer", "vocabulary", 4, seconds=12),
    ]
    return [*many, *others, *_growth((4, 64), (4096, 32768)), *_others(rounds=3)]


def long() -> list[Cell]:
    """Hours: every trunk with every head and number of tasks, and all steps."""
    images, heads = [trunk for trunk in BATCH if trunk != "transformer"], ("linear", "mlp")
    grid = [*product(images, heads, TASKS), *product(["transformer"], ("bytes", "vocabulary"), TASKS)]
    grid += product(("resnet18-64", "resnet18-128", "convnext_atto-64"), ("dense",), TASKS[:5])
    cells = [steps(trunk, heads, tasks, groups=ALL, seconds=120) for trunk, heads, tasks in grid]
    return [*cells, *_growth((4, 8, 32, 64, 128, 256), (1024, 4096, 16384, 65536)), *_others(rounds=11)]


def _growth(batches: Sequence[int], widths: Sequence[int]) -> list[Cell]:
    """Beside the cell of K = 8: other batch sizes, other numbers of features."""
    cells = [steps("resnet18-64", "linear", 8, batch) for batch in batches]
    return cells + [steps(f"resnet18-64+{width}", "linear", 8, BATCH["resnet18-64"]) for width in widths]


def _others(rounds: int) -> list[Cell]:
    """What is no comparison of steps on one problem."""
    problems = {
        "resnet18-64-linear-k8": dict(trunk="resnet18-64", heads="linear", tasks=8, batch=16),
        "resnet18-64-linear-k40": dict(trunk="resnet18-64", heads="linear", tasks=40, batch=16),
        "transformer-vocabulary-k4": dict(trunk="transformer", heads="vocabulary", tasks=4, batch=2),
    }
    rows = {"naive": "naive", "detached": "detached", "mgda": "MGDA, features", "mgda-parameters": "MGDA, parameters"}
    memory = dict(trunk="transformer", heads="vocabulary", tasks=8, batch=4)
    counts = {"layer": (2, 8, 16), "lightning": (2, 8)}
    return [
        *(
            Cell(f"{kind}-k{tasks}", kind, dict(trunk="resnet18-64", heads="linear", tasks=tasks, batch=16), 25)
            for kind, numbers in counts.items()
            for tasks in numbers
        ),
        *(Cell(f"heads-alone-b{batch}", "heads_alone", dict(tasks=40, batch=batch), 8) for batch in (32, 128)),
        *(Cell(f"parts-{name}", "parts", problem, 6) for name, problem in problems.items()),
        *(Cell(f"high-water-{name}", "high_water", memory | dict(row=row), 0) for name, row in rows.items()),
        *(Cell(f"bf16-{name}", "bf16", problem, 8) for name, problem in problems.items() if "k40" not in name),
        *(Cell(f"loop{suffix}", "loop", dict(ready=ready), 20) for suffix, ready in (("", False), ("-ready", True))),
        Cell("start-up", "startup", {"rounds": rounds}, 0),
        Cell("demo", "demo", {}, 0),
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
    found = []
    for cell in cells:
        if cell.kind in ("steps", "heads_alone", "parts", "bf16"):
            batch = cell.arguments["batch"]
            name = cell.name.replace(f"-b{batch}", f"-b{ON_GPU * batch}")
            found.append(replace(cell, name=name, arguments=cell.arguments | {"batch": ON_GPU * batch}))
    return found
