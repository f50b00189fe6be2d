"""Multi-task learning in PyTorch: one backward of the trunk, a rule between the tasks, conflict metrics on every run.

The library in one import; a name is loaded when it is first used, so that ``import mtl`` alone loads no torch.

- in a model of one's own: :class:`Balance`; with the losses in hand: :func:`backward`, :func:`weights_of`
- in a loop of one's own, one head's graph at a time: :class:`Cut` with :class:`Rows` and :class:`Direction`
- in a loop that calls ``strategy.step``: :class:`Naive`, :class:`Detached`, :class:`Balanced` on a
  :class:`MultiTaskModel` and its :class:`Task` list
- the Gram matrix alone: :mod:`rules`, :func:`conflict_metrics`, :func:`cosines`
- of a trained model: :func:`load`, which gives a :class:`Predictor`
- :mod:`weightings`, :mod:`losses` and :mod:`metrics`, whose classes configurations name
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mtl.version import __version__ as __version__

if TYPE_CHECKING:
    from mtl import losses, metrics, rules, weightings
    from mtl.balance import Balance, BalanceResult
    from mtl.conflict import conflict_metrics, cosines
    from mtl.functional import backward, weights_of
    from mtl.gradients.cut import Cut, Direction
    from mtl.gradients.rows import Rows
    from mtl.model import MultiTaskModel
    from mtl.prediction.predictor import Predictor, load
    from mtl.strategies import Balanced, Detached, Naive, StepResult, Strategy
    from mtl.tasks import Task

__all__ = [
    "Balance",
    "BalanceResult",
    "Balanced",
    "Cut",
    "Detached",
    "Direction",
    "MultiTaskModel",
    "Naive",
    "Predictor",
    "Rows",
    "StepResult",
    "Strategy",
    "Task",
    "backward",
    "conflict_metrics",
    "cosines",
    "load",
    "losses",
    "metrics",
    "rules",
    "weightings",
    "weights_of",
]

_MODULES = {
    "mtl.balance": ("Balance", "BalanceResult"),
    "mtl.conflict": ("conflict_metrics", "cosines"),
    "mtl.functional": ("backward", "weights_of"),
    "mtl.gradients.cut": ("Cut", "Direction"),
    "mtl.gradients.rows": ("Rows",),
    "mtl.model": ("MultiTaskModel",),
    "mtl.prediction.predictor": ("Predictor", "load"),
    "mtl.strategies": ("Balanced", "Detached", "Naive", "StepResult", "Strategy"),
    "mtl.tasks": ("Task",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name) if name in _HOMES else import_module(f"mtl.{name}")
    globals()[name] = value  # the next use finds it at once
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
