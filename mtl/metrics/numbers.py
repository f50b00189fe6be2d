"""Metrics of real numbers and of counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torchmetrics import Metric, R2Score

from mtl.losses import is_label
from mtl.metrics.masked import MaskedMean


def depth(invalid: float | None = 0.0, batch_mean: bool = False) -> dict[str, Metric]:
    """For depth maps, prediction p and target t of one shape: ``abs_err``, ``rmse``, and ``rel_err``, ``|p - t| / t``.

    ``batch_mean`` adds ``abs_err_batch_mean`` and ``rel_err_batch_mean``. Lower is better.
    """
    labelled = partial(is_label, invalid=invalid)
    named = {
        "abs_err": MaskedMean(_absolute, labelled),
        "rel_err": MaskedMean(_relative, labelled),
        "rmse": MaskedMean(_squared, labelled, root=True),
    }
    if batch_mean:
        named["abs_err_batch_mean"] = MaskedMean(_absolute, labelled, "mean")
        named["rel_err_batch_mean"] = MaskedMean(_relative, labelled, "mean")
    return named


def regression(invalid: float | None = None) -> dict[str, Metric]:
    """For real numbers of any shape, such as maps of keypoints or edge strengths: ``abs_err`` and ``rmse``."""
    labelled = partial(is_label, invalid=invalid)
    return {"abs_err": MaskedMean(_absolute, labelled), "rmse": MaskedMean(_squared, labelled, root=True)}


def standardised(deviations: Sequence[float], endings: Sequence[str]) -> dict[str, Metric]:
    """For numbers ``[B, columns]`` that were divided by their deviation, NaN if missing: ``abs_err`` and ``rmse``.

    They are in the unit of each column: ``deviations`` has each column's, and ``endings`` end its metrics' names.
    """
    found: dict[str, Metric] = {}
    for i, (ending, std) in enumerate(zip(endings, deviations, strict=True)):
        labelled = partial(_is_number, i)
        found[f"abs_err{ending}"] = MaskedMean(partial(_absolute_in_units, i, std), labelled)
        found[f"rmse{ending}"] = MaskedMean(partial(_squared_in_units, i, std), labelled, root=True)
    return found


def determination(endings: Sequence[str]) -> dict[str, Metric]:
    """For numbers ``[B, columns]``, standardised or not, NaN if missing: ``r2``, with the ending of each column."""
    return {f"r2{ending}": ColumnR2(i) for i, ending in enumerate(endings)}


def counts(endings: Sequence[str]) -> dict[str, Metric]:
    """For counts ``[B, columns]``, NaN if missing, and the logarithms of their means: ``abs_err``, ``rmse``, ``r2``."""
    found: dict[str, Metric] = {}
    for i, ending in enumerate(endings):
        labelled = partial(_is_number, i)
        found[f"abs_err{ending}"] = MaskedMean(partial(_absolute_of_count, i), labelled)
        found[f"rmse{ending}"] = MaskedMean(partial(_squared_of_count, i), labelled, root=True)
        found[f"r2{ending}"] = ColumnR2(i, torch.exp)
    return found


class ColumnR2(R2Score):
    """The coefficient of determination of column ``i`` of numbers ``[B, columns]``, NaN if missing.

    ``read`` makes numbers of the predictions. NaN for fewer than two targets.
    """

    higher_is_better = True
    total: Tensor

    def __init__(self, i: int, read: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self._i, self._read = i, read
        self.set_dtype(torch.float64)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch."""
        own, known = prediction[:, self._i].double(), _is_number(self._i, target)
        own = own if self._read is None else self._read(own)
        if known.any():
            super().update(own[known], target[:, self._i][known].double())

    def compute(self) -> Tensor:
        """The value so far."""
        return super().compute() if self.total > 1 else torch.tensor(torch.nan, device=self.device)


def _absolute(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target).abs()


def _squared(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target).square()


def _relative(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target).abs() / target


def _is_number(i: int, target: Tensor) -> Tensor:
    return target[:, i].isnan().logical_not()


def _absolute_in_units(i: int, std: float, prediction: Tensor, target: Tensor) -> Tensor:
    return std * (prediction[:, i] - target[:, i]).abs()


def _squared_in_units(i: int, std: float, prediction: Tensor, target: Tensor) -> Tensor:
    return (std * (prediction[:, i] - target[:, i])).square()


def _absolute_of_count(i: int, prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction[:, i].exp() - target[:, i]).abs()


def _squared_of_count(i: int, prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction[:, i].exp() - target[:, i]).square()
