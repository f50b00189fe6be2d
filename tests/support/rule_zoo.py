"""Awkward Gram matrices, and the rules to try on them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mtl import rules


def rows_of(count: int, size: int, seed: int = 0) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def apart(rows: Tensor, ratio: float) -> Tensor:
    """Rows with norms from 1 to ``ratio``, equally spaced in the logarithm."""
    return rows / rows.norm(dim=1, keepdim=True) * torch.logspace(0, 1, len(rows), base=ratio).double()[:, None]


def with_rows(rows: Tensor, **replaced: Tensor) -> Tensor:
    rows = rows.clone()
    for name, row in replaced.items():
        rows[int(name[1:])] = row
    return rows


R8 = rows_of(8, 20)
R4 = rows_of(4, 9, seed=1)
EYE = torch.eye(3, dtype=torch.float64)

ROWS: dict[str, Tensor] = {
    "one": rows_of(1, 5),
    "one element": torch.tensor([[2.0]]).double(),
    "two": rows_of(2, 5, seed=2),
    "two in conflict": torch.tensor([[1.0, 0.0], [-0.9, 0.3]]).double(),
    "two with one far longer": torch.tensor([[1.0, 0.2], [-2e6, 3e5]]).double(),
    "three": rows_of(3, 5, seed=3),
    "eight": R8,
    "eight in few dimensions": rows_of(8, 9, seed=4),
    "common part": R8 + 2 * rows_of(1, 20, seed=5),
    "forty": rows_of(40, 60, seed=6),
    "sixty-four": rows_of(64, 200, seed=7),
    "ratio 10": apart(R8, 10),
    "ratio 1000": apart(R8, 1e3),
    "ratio 1e6": apart(R8, 1e6),
    "ratio 1e6, common part": apart(R8 + 2 * rows_of(1, 20, seed=5), 1e6),
    "ratio 1e6, forty": apart(rows_of(40, 60, seed=8), 1e6),
    "rank 4 of 8": rows_of(8, 4, seed=9),
    "rank 4 of 8, common part": rows_of(8, 4, seed=9) + 4 * rows_of(1, 4, seed=10),
    "rank 1 of 3": rows_of(1, 5) * torch.tensor([[1.0], [2.0], [0.5]]),
    "rank 1 of 3, opposite": rows_of(1, 5) * torch.tensor([[1.0], [-2.0], [0.5]]),
    "rank 20 of 40": rows_of(40, 20, seed=11),
    "duplicated": with_rows(R4, _1=R4[0]),
    "all the same": R4[:1].expand(4, -1),
    "duplicated and scaled": with_rows(R4, _1=1e3 * R4[0]),
    "opposite": with_rows(R4, _1=-R4[0]),
    "opposite, two": torch.stack([R4[0], -R4[0]]),
    "opposite and longer": with_rows(R4, _1=-1e3 * R4[0]),
    "nearly opposite": with_rows(R4, _1=-R4[0] + 1e-4 * R4[2]),
    "a zero row": with_rows(R4, _2=torch.zeros(9)),
    "two zero rows": with_rows(R4, _0=torch.zeros(9), _2=torch.zeros(9)),
    "all zero": torch.zeros(3, 4).double(),
    "one zero": torch.zeros(1, 4).double(),
    "zero and opposite": with_rows(R4, _1=-R4[0], _2=torch.zeros(9)),
    "orthogonal": EYE,
    "mean of zero": torch.tensor([[1.0, 0.0], [-0.5, 3**0.5 / 2], [-0.5, -(3**0.5) / 2]]).double(),
    "tiny": 1e-20 * R8,
    "huge": 1e20 * R8,
    "bf16 rows": R8.bfloat16().double(),
    "bf16 rows, common part": (R8 + 5 * rows_of(1, 20, seed=5)).bfloat16().double(),
}

GRAMS: dict[str, Tensor] = {name: rows @ rows.T for name, rows in ROWS.items()}
# Rounded after the product, so that they are no longer positive semi-definite.
ROUNDED: dict[str, Tensor] = {
    "bf16 Gram matrix": GRAMS["eight"].bfloat16(),
    "bf16 Gram matrix of rank 4": GRAMS["rank 4 of 8"].bfloat16(),
    "bf16 Gram matrix, forty": GRAMS["ratio 1e6, forty"].bfloat16(),
    "float32 Gram matrix of rank 4": GRAMS["rank 4 of 8, common part"].float(),
    "float32 Gram matrix, opposite": GRAMS["opposite"].float(),
}


# Rules without random draws, made for a number of tasks.
class WithLosses(rules.Rule):
    """A rule that needs losses, with some: large for short gradients, so that they do not depend on the order."""

    per_task_state = True

    def __init__(self, rule):
        super().__init__()
        self.rule = rule

    def forward(self, gram, present=None):
        squares = gram.diagonal().double()
        return self.rule(gram, 1 / (1 + squares / squares.max().clamp(min=1e-300)), present)


DETERMINISTIC: dict[str, Callable[[int], nn.Module]] = {
    "Sum": lambda k: rules.Sum(),
    "Mean": lambda k: rules.Mean(),
    "MGDA": lambda k: rules.MGDA(),
    "CAGrad": lambda k: rules.CAGrad(c=0.5),
    "CAGrad c=0.05": lambda k: rules.CAGrad(c=0.05),
    "CAGrad c=2": lambda k: rules.CAGrad(c=2.0),
    "IMTLG": lambda k: rules.IMTLG(),
    "NashMTL": lambda k: rules.NashMTL(),
    "AlignedMTL": lambda k: rules.AlignedMTL(),
    "AlignedMTL median": lambda k: rules.AlignedMTL("median"),
    "AlignedMTL mean": lambda k: rules.AlignedMTL("mean"),
    "UPGrad": lambda k: rules.UPGrad(),
    "DualProj": lambda k: rules.DualProj(),
    "FairGrad 0.1": lambda k: rules.FairGrad(alpha=0.1),
    "FairGrad 0.5": lambda k: rules.FairGrad(alpha=0.5),
    "FairGrad 2": lambda k: rules.FairGrad(alpha=2.0),
    "FairGrad 10": lambda k: rules.FairGrad(alpha=10.0),
    "ConFIG": lambda k: rules.ConFIG(),
    "SDMGrad": lambda k: rules.SDMGrad(k),
    "PCD": lambda k: rules.PCD(k),
    "Krum": lambda k: rules.Krum(),
    "RotoGradScale": lambda k: rules.RotoGradScale(k),
    "EPO": lambda k: WithLosses(rules.EPO(k)),
}
DRAWING: dict[str, Callable[[int], nn.Module]] = {
    "PCGrad": lambda k: rules.PCGrad(),
    "GradVac": lambda k: rules.GradVac(k),
}
ON_GRAM = DETERMINISTIC | DRAWING
ON_ROWS: dict[str, Callable[[int], nn.Module]] = {
    "GradDrop": lambda k: rules.GradDrop(),
    "DBMTL": lambda k: rules.DBMTL(k),
    "MoCo": lambda k: rules.MoCo(k),
    "ExcessMTL": lambda k: rules.ExcessMTL(k),
    "TrimmedMean": lambda k: rules.TrimmedMean(),
}
KEEPING = ["GradVac", "SDMGrad", "PCD", "RotoGradScale"]


def scaled(gram: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For the nonzero rows: norms n, correlation C, b = n w, and C b; exact even if norms are far apart."""
    alive = gram.diagonal() > 0
    norms = gram.diagonal()[alive].sqrt()
    correlation = gram[alive][:, alive] / norms[:, None] / norms
    products = norms * weights[alive]
    return norms, correlation, products, correlation @ products
