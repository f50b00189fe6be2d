from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn


class Hard:
    """Hard parameter sharing: every head reads the features of one backbone. Source: Caruana 1997."""

    def __init__(self, backbone: Callable[[], nn.Module], tasks: Sequence[str]) -> None:
        self.trunk = backbone()

    def reader(self, task: str) -> None:
        """None: the heads read the backbone's features themselves."""
        return
