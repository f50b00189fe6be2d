"""The configuration: its schema, its checks, and build(), the only place that instantiates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtl.config.checks import check
    from mtl.config.instantiate import CONF, load

__all__ = ["CONF", "check", "load"]


def __getattr__(name: str) -> Any:
    """The names above, imported when they are used: mtl-report reads the schema without importing Hydra."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mtl.config import checks, instantiate

    return checks.check if name == "check" else getattr(instantiate, name)
