from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedParameter


class Lazy(LazyModuleMixin, nn.Module):
    """A module that is made in the first forward pass: ``build`` is given its inputs, as torch.nn.LazyLinear's width.

    The module gets the first input alone; others are there for their shapes.
    """

    cls_to_become = None

    def __init__(self, build: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.build = build
        self.pending = UninitializedParameter()  # which torch takes for the parameters to come

    def initialize_parameters(self, *inputs: Any) -> None:
        """Make the module."""
        if self.has_uninitialized_params():
            self.module = self.build(*inputs).to(self.pending.data).train(self.training)
            del self.pending

    def forward(self, x: Any, *inputs: Any) -> Any:
        """What the module makes of ``x``."""
        return self.module(x)
