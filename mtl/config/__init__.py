"""The configuration: its schema, its checks, and build(), the only place that instantiates."""

from mtl.config.checks import check
from mtl.config.instantiate import CONF, load

__all__ = ["CONF", "check", "load"]
