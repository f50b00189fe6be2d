"""How long a rule takes, and how near it comes to its own definition, beside TorchJD in one process.

Run it from the repository: ``python experiments/rules/benchmark.py``. It prints two Markdown tables. Without
TorchJD (``pip install "torchjd[full]"``) its columns stay empty.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy looks

import platform
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy
import torch
from torch import Tensor

from mtl import rules

try:
    from torchjd import aggregation as peer
except ImportError:
    peer = None

SIZES = (2, 4, 8, 16, 40)
WIDTH = 1000
TARGETS = {2: 0.3, 4: 0.3, 8: 0.3, 16: 1.0, 40: 3.0}
Timed = Callable[[], Any]

# Our rule for K tasks, and TorchJD's under the same name.
OURS: dict[str, Callable[[int], Any]] = {
    "MGDA": lambda k: rules.MGDA(),
    "CAGrad(0.5)": lambda k: rules.CAGrad(c=0.5),
    "UPGrad": lambda k: rules.UPGrad(),
    "DualProj": lambda k: rules.DualProj(),
    "NashMTL": lambda k: rules.NashMTL(),
    "FairGrad(1)": lambda k: rules.FairGrad(alpha=1.0),
    "FairGrad(2)": lambda k: rules.FairGrad(alpha=2.0),
    "IMTLG": lambda k: rules.IMTLG(),
    "AlignedMTL": lambda k: rules.AlignedMTL(),
    "ConFIG": lambda k: rules.ConFIG(),
    "PCD": lambda k: rules.PCD(k),
    "SDMGrad": lambda k: rules.SDMGrad(k),
    "Krum": lambda k: rules.Krum(),
    "RotoGradScale": lambda k: rules.RotoGradScale(k),
    "PCGrad (draws)": lambda k: rules.PCGrad(),
    "GradVac (draws)": lambda k: rules.GradVac(k),
    "GradDrop (draws, on rows)": lambda k: rules.GradDrop(),
    "DBMTL (on rows)": lambda k: rules.DBMTL(k),
    "MoCo (on rows)": lambda k: rules.MoCo(k),
    "ExcessMTL (on rows)": lambda k: rules.ExcessMTL(k),
    "TrimmedMean (on rows)": lambda k: rules.TrimmedMean(),
}
THEIRS: dict[str, Callable[[int], Any]] = {
    "MGDA": lambda k: peer.MGDAWeighting(),
    "CAGrad(0.5)": lambda k: peer.CAGradWeighting(c=0.5),
    "UPGrad": lambda k: peer.UPGradWeighting(),
    "DualProj": lambda k: peer.DualProjWeighting(),
    "NashMTL": lambda k: peer.NashMTL(n_tasks=k),
    "FairGrad(1)": lambda k: peer.FairGradWeighting(alpha=1.0),
    "FairGrad(2)": lambda k: peer.FairGradWeighting(alpha=2.0),
    "IMTLG": lambda k: peer.IMTLGWeighting(),
    "AlignedMTL": lambda k: peer.AlignedMTLWeighting(),
    "ConFIG": lambda k: peer.ConFIG(),
    "PCD": lambda k: peer.PCDWeighting(),
    "SDMGrad": lambda k: peer.SDMGradWeighting(),
    "Krum": lambda k: peer.KrumWeighting(n_byzantine=1),
    "PCGrad (draws)": lambda k: peer.PCGradWeighting(),
    "GradVac (draws)": lambda k: peer.GradVacWeighting(),
    "GradDrop (draws, on rows)": lambda k: peer.GradDrop(),
    "ExcessMTL (on rows)": lambda k: peer.ExcessMTL(),
    "TrimmedMean (on rows)": lambda k: peer.TrimmedMean(1),
}
ON_ROWS = ("NashMTL", "ConFIG")  # where theirs takes the rows, and ours the Gram matrix


def our_call(name: str, rows: Tensor) -> Timed:
    """Our rule, ready to be called on these rows or their Gram matrix."""
    rule, gram = OURS[name](len(rows)), (rows.double() @ rows.double().T)
    if rule.needs_rows:
        return lambda: rule.combine([rows], gram)
    return lambda: rule(gram)


def their_call(name: str, rows: Tensor) -> Timed | None:
    """TorchJD's, or None where it has none."""
    if peer is None or name not in THEIRS or (len(rows) < 4 and name in ("Krum", "TrimmedMean (on rows)")):
        return None
    rule = THEIRS[name](len(rows))
    argument = rows if name in ON_ROWS or "on rows" in name else rows @ rows.T
    return lambda: rule(argument)


def medians(calls: list[Timed | None], seconds: float = 0.6) -> list[float]:
    """Median milliseconds of each call, ten of each in turn, so that a busy moment hits all of them."""
    present = [call for call in calls if call is not None]
    times: list[list[float]] = [[] for _ in present]
    end = time.perf_counter() + seconds
    while len(times[0]) < 20 or (time.perf_counter() < end and len(times[0]) < 300):
        for call, sample in zip(present, times, strict=True):
            call()  # what the others pushed out of the caches comes back
            for _ in range(10):
                start = time.perf_counter()
                call()
                sample.append(1e3 * (time.perf_counter() - start))
    found = iter(np.median(times, axis=1))
    return [float("nan") if call is None else float(next(found)) for call in calls]


def print_times() -> None:
    """Print the first table."""
    print("| rule: ours / TorchJD, ms |" + "".join(f" K={k} |" for k in SIZES))
    print("|---|" + "---|" * len(SIZES))
    missed = []
    for name in OURS:
        cells = []
        for count in SIZES:
            rows = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(count))
            ours, theirs = medians([our_call(name, rows), their_call(name, rows)])
            cells.append(f"{ours:.3f} / {'–' if np.isnan(theirs) else f'{theirs:.3f}'}")
            if ours > TARGETS[count] and "draws" not in name and "on rows" not in name:
                missed.append(f"{name} at K={count}: {ours:.2f} ms, target {TARGETS[count]} ms")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    print("\nTargets missed by a rule without draws on the Gram matrix:", "; ".join(missed) or "none")


def draws(count: int, ratio: float) -> list[Tensor]:
    """Five draws of rows whose norms are spread evenly in the logarithm from 1 to ``ratio``."""
    found = []
    for seed in range(5):
        rows = torch.randn(count, 256, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        norms = torch.logspace(0, np.log10(ratio), count, dtype=torch.float64)
        found.append(rows / rows.norm(dim=1, keepdim=True) * norms[:, None])
    return found


def smallest_cosine(rows: Tensor, direction: Tensor) -> float:
    """The smallest cosine between the direction and a row; negative: a task is hurt."""
    return float((rows @ direction / rows.norm(dim=1) / direction.norm()).min())


def worst_gain(rows: Tensor, weights: Tensor) -> float:
    """CAGrad's objective, if the direction is in the ball; its violation is taken off in proportion."""
    mean = rows.mean(0)
    added = weights.double() @ rows - mean
    shrunk = mean + added * min(1.0, float(0.5 * mean.norm() / added.norm()))
    return float((rows @ shrunk).min())


def exactness(rows: Tensor, which: str) -> list[float]:
    """The measures of one draw: by the rules ``which`` (ours, theirs), from the definitions."""
    gram = rows @ rows.T
    if which == "ours":
        mgda, cagrad, upgrad = (rule(gram) for rule in (rules.MGDA(), rules.CAGrad(0.5), rules.UPGrad()))
        dualproj, nash, fair = (rule(gram) for rule in (rules.DualProj(), rules.NashMTL(), rules.FairGrad(1.0)))
    else:
        mgda, cagrad = peer.MGDAWeighting()(gram), peer.CAGradWeighting(c=0.5)(gram)
        upgrad, dualproj = peer.UPGradWeighting()(gram), peer.DualProjWeighting()(gram)
        fair = peer.FairGradWeighting(alpha=1.0)(gram)
        direction = peer.NashMTL(n_tasks=len(rows), max_norm=0)(rows)
        nash = torch.linalg.lstsq((rows / rows.norm(dim=1, keepdim=True)).T, direction[:, None])[0].flatten()
        nash = nash / rows.norm(dim=1)
    image = gram @ mgda
    best = float(mgda_lower_bound(gram))
    return [
        float(mgda @ image) / best,
        worst_gain(rows, cagrad) / worst_gain(rows, rules.CAGrad(0.5)(gram)),
        smallest_cosine(rows, upgrad @ rows),
        smallest_cosine(rows, dualproj @ rows),
        float((nash * (gram @ nash) - 1).abs().max()),
        float((fair * (gram @ fair) - 1).abs().max()),
    ]


def mgda_lower_bound(gram: Tensor) -> Tensor:
    """A bound below the optimum's square: (min_i <g_i, d>)^2 / |d|^2, whatever d in the hull.

    It is tight at the optimum, so that a ratio of one is a proof.
    """
    weights = rules.MGDA()(gram)
    return (gram @ weights).min() ** 2 / (weights @ gram @ weights)


MEASURES = (
    "MGDA: square over its lower bound",
    "CAGrad: worst gain over ours",
    "UPGrad: smallest cosine",
    "DualProj: smallest cosine",
    "NashMTL: max abs(a · Ga − 1)",
    "FairGrad(1): the same residual",
)


def print_exactness() -> None:
    """Print the second table."""
    print("| K, norm ratio | " + " | ".join(f"{m} (ours / TorchJD)" for m in MEASURES) + " |")
    print("|---|" + "---|" * len(MEASURES))
    for count, ratio in ((8, 1), (8, 10), (8, 100), (8, 1000), (8, 10**6), (16, 1000), (40, 1000)):
        ours = np.median([exactness(rows, "ours") for rows in draws(count, ratio)], axis=0)
        theirs = [float("nan")] * len(MEASURES)
        if peer is not None:
            theirs = np.median([exactness(rows, "theirs") for rows in draws(count, ratio)], axis=0)
        print(f"| {count}, {ratio} | " + " | ".join(map(cell, ours, theirs)) + " |", flush=True)


def cell(ours: float, theirs: float) -> str:
    """One cell of the second table."""
    return f"{ours:.3g} / {'–' if np.isnan(theirs) else f'{theirs:.3g}'}"


def main() -> None:
    """Print the machine and both tables."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # theirs, about the accuracy of a solver
    machine = f"{os.cpu_count()} x {platform.machine()}, one thread, Python {platform.python_version()}"
    print(f"{machine}, torch {torch.__version__}, numpy {np.__version__}, scipy {scipy.__version__}\n")
    print_times()
    print()
    print_exactness()


if __name__ == "__main__":
    main()
