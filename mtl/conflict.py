"""Conflict metrics: pure functions of the Gram matrix of the task gradients, ``G_ij = <g_i, g_j>``.

They need no configuration and accept any ``[K, K]`` tensor, in a notebook too. A zero gradient has no direction: its
pairs have no cosine, and the metrics of cosines ignore them. An undefined value is absent from the result.

Values for two gradients of one norm, and of K gradients of one norm where they depend on K:

====================  ========  ================================  =======
metric                parallel  orthogonal                        opposed
====================  ========  ================================  =======
cos, cos_mean         1         0                                 -1
fraction              0         0                                 1
magnitude_similarity  1         1                                 1
condition_number      1000      1                                 1000
rank                  1         2 (K)                             1
stationarity          1         0.71 (``1 / sqrt(K)``)            0
cancellation          0         0.29 (``1 - 1 / sqrt(K)``)        1
====================  ========  ================================  =======

In training the rows are the gradients of the *weighted* losses, without the loss scale of float16, over the batch of
all ranks; of several accumulated batches they are the last one's. At the features a row has a number for each feature
of each sample: its norm falls with the batch size as ``1 / sqrt(samples)`` where losses are means, and cosines are
small by nature (of two random directions in D dimensions they spread by ``1 / sqrt(D)``). :mod:`mtl.descriptions` has a
line on each metric.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations, compress

import torch
from torch import Tensor

from mtl.descriptions import TOLERANCE
from mtl.rules.solvers import min_norm_weights

# Gram matrices come from float32 gradients: eigenvalues below this share of the largest are rounding errors.
RANK_TOLERANCE = 1e-6


def cosines(gram: Tensor) -> Tensor:
    """Pairwise cosines ``C_ij = G_ij / (|g_i| |g_j|)``, ``[K, K]``, float64; NaN in the rows of zero gradients."""
    norms = gram.double().diagonal().clamp(min=0).sqrt()
    scaled = gram.double() / norms[:, None] / norms[None, :]  # not by the product, which may underflow
    return scaled.clamp(-1, 1)


def conflict_metrics(gram: Tensor, tasks: Sequence[str], tolerance: float = TOLERANCE) -> dict[str, float]:
    """All conflict metrics of one step, by their logged names.

    Two gradients conflict where their cosine is below ``-tolerance``. At the default of 0.05 and equal norms, a task
    loses 5 % of its first-order progress to the other one, and of random directions 6 % of the pairs go so far in 1000
    dimensions, 0.1 % in 4000. 0 counts every negative cosine, as Yu et al. 2020 do, and noise. With the norms
    ``n_i = |g_i|`` and K tasks:

    - ``conflict/cos/<a>~<b>``, ``cos_mean``, ``cos_min``: the cosines of the pairs, in the order of ``tasks``
    - ``conflict/fraction``: the share of pairs with a cosine below ``-tolerance`` (Yu et al. 2020, definition 1: 0)
    - ``conflict/magnitude_similarity``: the mean of ``2 n_i n_j / (n_i^2 + n_j^2)`` (Yu et al. 2020, definition 2), in
      [0, 1]; 0 for a pair with one zero gradient
    - ``conflict/norm/<task>``: ``n_i``
    - ``conflict/condition_number``: ``sqrt(lambda_max / lambda_min)`` of G (Senushkin et al. 2023, section 3), in
      [1, 1000]. 1000 means 1000 or more, up to infinity: smaller eigenvalues are rounding errors of float32
    - ``conflict/rank``: the number of eigenvalues above these rounding errors
    - ``conflict/stationarity``: ``|sum_i a_i g_i| / mean(n)`` with the min-norm weights a of MGDA (Désidéri 2012), a
      ratio in [0, 1]: the distance from Pareto stationarity. 0 means that no direction improves every task. It is at
      most ``min(n) / mean(n)``: small without any conflict where one task's gradient is small
    - ``conflict/cancellation``: ``1 - |sum_i g_i| / sum_i n_i``, in [0, 1]: the share of the norms that is lost in the
      sum; 0 if all gradients are parallel, 1 if their sum is zero

    ValueError if the matrix is not ``[K, K]``.
    """
    gram = gram.detach().double().cpu()
    if gram.shape != (len(tasks), len(tasks)):
        raise ValueError(f"The Gram matrix is {tuple(gram.shape)}, but there are {len(tasks)} tasks.")
    norms = gram.diagonal().clamp(min=0).sqrt()
    metrics = {f"conflict/norm/{task}": norm for task, norm in zip(tasks, norms.tolist(), strict=True)}
    metrics |= _pair_metrics(gram, norms, tasks, tolerance)
    if norms.max() > 0 and torch.isfinite(gram).all():
        # In units of the largest norm, so that no square leaves float64's range.
        unit = gram / norms.max() / norms.max()
        eigenvalues = torch.linalg.eigvalsh(unit)
        smallest = RANK_TOLERANCE * eigenvalues[-1]
        relative = norms / norms.max()
        weights = min_norm_weights(gram)
        metrics["conflict/condition_number"] = (eigenvalues[-1] / eigenvalues[0].clamp(min=smallest)).sqrt().item()
        metrics["conflict/rank"] = int((eigenvalues > smallest).sum())
        metrics["conflict/stationarity"] = (_norm(unit, weights) / relative.mean()).item()
        kept = _norm(unit, torch.ones_like(norms)) / relative.sum()
        metrics["conflict/cancellation"] = (1 - kept).clamp(min=0).item()
    return metrics


def agreement_metrics(
    features: Tensor,
    parameters: Tensor,
    tasks: Sequence[str],
    weights: tuple[Tensor, Tensor] | None = None,
    tolerance: float = TOLERANCE,
) -> dict[str, float]:
    """The agreement of the Gram matrix at the features with that at the trunk's parameters, both ``[K, K]``.

    - ``audit/cos/<a>~<b>``: the cosines in parameter space
    - ``audit/cos_correlation``: Pearson's correlation over the pairs between the cosines in both spaces, if K > 2
    - ``audit/cos_error``: the mean absolute difference of the cosines
    - ``audit/sign_agreement``: the share with the same sign in both spaces, of the pairs whose cosines are beyond
      ``tolerance`` in both; 0.5 is chance
    - ``audit/update_cosine``: the cosine between the two parameter updates that follow from ``weights``, a rule's
      weights for the first and for the second matrix
    """
    here, there = cosines(features), cosines(parameters)
    pairs = [(i, j) for i, j in combinations(range(len(tasks)), 2) if torch.isfinite(here[i, j] + there[i, j])]
    if not pairs:
        return {}
    metrics = {f"audit/cos/{tasks[i]}~{tasks[j]}": there[i, j].item() for i, j in pairs}
    a, b = (torch.stack([matrix[i, j] for i, j in pairs]) for matrix in (here, there))
    metrics["audit/cos_error"] = (a - b).abs().mean().item()
    clear = (a.abs() > tolerance) & (b.abs() > tolerance)
    if clear.any():
        metrics["audit/sign_agreement"] = ((a < 0) == (b < 0))[clear].double().mean().item()
    if len(pairs) > 2 and a.std() > 0 and b.std() > 0:
        metrics["audit/cos_correlation"] = torch.corrcoef(torch.stack([a, b]))[0, 1].item()
    if weights is not None:
        lengths = [_norm(parameters.double(), w) for w in weights]
        if min(lengths) > 0:
            cosine = weights[0] @ parameters.double() @ weights[1] / lengths[0] / lengths[1]
            metrics["audit/update_cosine"] = cosine.clamp(-1, 1).item()
    return metrics


def _pair_metrics(gram: Tensor, norms: Tensor, tasks: Sequence[str], tolerance: float) -> dict[str, float]:
    pairs, names = _pairs(tuple(tasks))
    smaller, larger = norms[pairs].aminmax(dim=1) if len(pairs) else (norms[:0], norms[:0])
    ratios = (smaller / larger)[torch.isfinite(larger) & (larger > 0)]
    metrics = {}
    if len(ratios):
        metrics["conflict/magnitude_similarity"] = (2 * ratios / (1 + ratios * ratios)).mean().item()
    i, j = pairs.T
    values = cosines(gram)[i, j]
    kept = torch.isfinite(values) & torch.isfinite(larger)
    if not kept.any():
        return metrics
    values = values[kept]
    return dict(zip(compress(names, kept.tolist()), values.tolist(), strict=True)) | {
        "conflict/cos_mean": values.mean().item(),
        "conflict/cos_min": values.min().item(),
        "conflict/fraction": (values < -tolerance).double().mean().item(),
        **metrics,
    }


@lru_cache(maxsize=16)
def _pairs(tasks: tuple[str, ...]) -> tuple[Tensor, list[str]]:
    """The indices ``[P, 2]`` and names of all pairs; cached, because 40 tasks have 780 pairs."""
    names = [f"conflict/cos/{a}~{b}" for a, b in combinations(tasks, 2)]
    return torch.combinations(torch.arange(len(tasks))), names


def _norm(gram: Tensor, weights: Tensor) -> Tensor:
    """The norm ``|sum_i w_i g_i|`` from the Gram matrix; a negative rounding error counts as zero."""
    return (weights @ gram @ weights).clamp(min=0).sqrt()
