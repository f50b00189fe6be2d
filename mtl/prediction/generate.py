"""Text that a model of tokens goes on with."""

from __future__ import annotations

import torch
from torch import Tensor

from mtl.prediction.ensemble import Ensemble

TASK = "next_1"  # the next token


def generates(ensemble: Ensemble) -> bool:
    """Whether a model predicts the next token of a text."""
    return TASK in ensemble.answers and ensemble.answers[TASK].kind == "token"


def generate(ensemble: Ensemble, window: Tensor, tokens: int) -> str:
    """The ``tokens`` tokens after those of ``window`` ``[1, T]``, each the most probable one after all before it.

    Bytes that are no UTF-8 are shown as �.
    """
    made: list[int] = []
    for _ in range(tokens):
        scores, _spread = ensemble.scores(window)
        made.append(int(scores[TASK][0].argmax()))
        window = torch.cat([window, torch.tensor([[made[-1]]])], 1)[:, -ensemble.preprocess.context :]
    return ensemble.preprocess.decode(made).decode(errors="replace")
