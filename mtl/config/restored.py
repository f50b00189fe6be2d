"""Trying a module without a trace: its mode, tensors, attributes and the random numbers are as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from mtl.system.environment import forked_rng

CONTAINERS = dict, list, set  # an attribute of these types may be filled in place, as a list of kept outputs


@contextmanager
def restored(*parts: Any) -> Iterator[None]:
    """Undo what happens in this context to those of ``parts`` that are modules, and to torch's random numbers.

    A copy would be no substitute: torch cannot copy a module that keeps a tensor of a graph, as its older weight_norm
    does from the start. What a hook stores outside of the modules stays there.
    """
    modules = [module for part in parts if isinstance(part, nn.Module) for module in part.modules()]
    before = [(module, {name: _copied(value) for name, value in vars(module).items()}) for module in modules]
    tensors = {id(tensor): tensor for module in modules for tensor in _tensors(module) if not is_lazy(tensor)}
    values = [(tensor, tensor.detach().clone()) for tensor in tensors.values()]
    devices = {tensor.device for tensor in tensors.values()}
    try:
        with forked_rng(devices):
            yield
    finally:
        for module, attributes in before:
            vars(module).clear()
            vars(module).update({name: _put_back(*pair) for name, pair in attributes.items()})
        with torch.no_grad():
            for tensor, value in values:
                if not torch.equal(tensor, value):  # batch normalisation does not count as a new version
                    tensor.copy_(value)


def has_lazy_parameters(module: nn.Module) -> bool:
    """Whether a parameter or buffer of the module gets its shape in the first forward pass."""
    return any(map(is_lazy, _tensors(module)))


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _copied(value: Any) -> tuple[Any, Any]:
    return value, value.copy() if isinstance(value, CONTAINERS) else None


def _put_back(value: Any, copied: Any) -> Any:
    """The same object with the content that it had."""
    if copied is None:
        return value
    if isinstance(value, list):
        value[:] = copied
    else:
        value.clear()
        value.update(copied)
    return value
