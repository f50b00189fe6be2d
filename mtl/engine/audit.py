"""The check of feature space against parameter space."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations

import torch
from torch import Tensor, nn

from mtl.engine.engine import Engine
from mtl.engine.result import AuditResult
from mtl.gradients.cut import Cut, Tap, trunk_vjp
from mtl.gradients.rows import ParameterRows
from mtl.gradients.spaces import SPACES

ALL_TASKS = 4  # up to so many tasks every one is audited; above, one pair at a time


class Audit(nn.Module):
    """How well feature space predicts parameter space: the tasks' Gram matrix in both, in one step.

    Each audited row is pushed through the trunk, one vector-Jacobian product a row. With all tasks audited one product
    is saved: the step's own backward gives u = sum_i c_i p_i, so the last row is (u - sum_{i<K} c_i p_i) / c_K. With
    more than four tasks one pair is audited, a different one each time. Parameter space has the parameters that several
    heads hold as well; the step's own backward does not tell their part, nor rows from penalties, and then no product
    is saved. ``space``: ``features``, flattened, or ``features_sum``, summed over the batch.
    """

    def __init__(self, space: str = "features") -> None:
        super().__init__()
        self.space, self.count = space, 0

    def get_extra_state(self) -> int:
        """The number of audits: it decides which pair comes next."""
        return self.count

    def set_extra_state(self, state: int) -> None:
        """Continue from there."""
        self.count = state

    @contextmanager
    def around(
        self, engine: Engine, cut: Cut | Tap, tasks: Sequence[str], weights: Tensor | None
    ) -> Iterator[AuditResult | None]:
        """Audit the step whose trunk backward runs inside; the result is complete at the end of the block.

        ``weights`` [K] says how much of each row goes into the trunk; None: it is no sum of rows, and every row is
        pushed. No result where there is nothing to compare.
        """
        parameters, rows = engine.trained_shared_parameters(), cut.rows
        parameters = parameters if any(z.requires_grad for z in cut.trunk) else []
        if rows is None or rows.count < 2 or not (parameters or cut.parameters):
            yield None
            return
        order = self._order(torch.ones(rows.count) if weights is None else weights.abs())
        coefficients = None if weights is None else weights.double().cpu()[order]
        whole = len(order) == rows.count and not (cut.parameters or cut.penalty)
        saves = coefficients is not None and whole and _can_save(engine, parameters, coefficients)
        pushed = ParameterRows([*parameters, *cut.parameters])
        for task in order[: len(order) - saves]:
            own = trunk_vjp(cut.trunk, rows.row(task), parameters, loss_scale=cut.loss_scale)
            pushed.append([*own, *cut.parameter_rows[task]])
        pushed.all_reduce(engine.reducer.all_reduce)
        before = [None if p.grad is None else p.grad.clone() for p in parameters] if saves else []
        result = AuditResult([tasks[i] for i in sorted(order)])
        yield result
        if saves:
            pushed.append([_own(p, b, cut.loss_scale) for p, b in zip(parameters, before, strict=True)])
        gram = pushed.gram()
        if saves and coefficients is not None:
            gram = _with_last_row(gram, coefficients)
        back = torch.tensor(order).argsort()  # to the order of the tasks
        features = SPACES[self.space](cut, [], engine.reducer.all_reduce).gram()
        result.features = features[sorted(order)][:, sorted(order)]
        result.parameters = gram[back][:, back]

    def _order(self, sizes: Tensor) -> list[int]:
        count = len(sizes)
        self.count += 1
        if count > ALL_TASKS:
            pairs = list(combinations(range(count), 2))
            return list(pairs[self.count * 7919 % len(pairs)])  # a prime step: neighbours in time differ
        # The row that is not pushed is divided by its coefficient, so it is the one with the largest.
        return sizes.argsort().tolist()


def _can_save(engine: Engine, parameters: Sequence[nn.Parameter], coefficients: Tensor) -> bool:
    """Whether the step's own backward tells the row that is not pushed.

    Over several ranks a gradient from before is summed together with the new one, and cannot be told from it.
    """
    mixed = engine.reducer.is_distributed and any(p.grad is not None for p in parameters)
    return bool(coefficients[-1] != 0) and engine.reduces and not mixed


def _own(parameter: Tensor, before: Tensor | None, loss_scale: float) -> Tensor | None:
    if parameter.grad is None:
        return None
    own = parameter.grad if before is None else parameter.grad - before
    return own if loss_scale == 1 else own / loss_scale


def _with_last_row(gram: Tensor, coefficients: Tensor) -> Tensor:
    """The Gram matrix of p_1 … p_K from that of p_1 … p_{K-1}, u, where u = sum_i c_i p_i."""
    change = torch.eye(len(gram), dtype=torch.float64)
    change[-1] = -coefficients / coefficients[-1]
    change[-1, -1] = 1 / coefficients[-1]
    return change @ gram @ change.T
