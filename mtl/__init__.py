"""Multi-task learning with the graph cut at the shared features; see README.md.

The names below are imported when they are first used, so that ``import mtl`` itself loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtl.balance import Balance as Balance

__version__ = "0.1.0"

_HOMES = {"Balance": "mtl.balance"}
__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mtl' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
