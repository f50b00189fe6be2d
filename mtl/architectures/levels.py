"""The parts of a backbone that follow each other, as levels."""

from __future__ import annotations

from itertools import pairwise

from torch import nn


def levels_of(backbone: nn.Module, count: int) -> list[nn.Module]:
    """``count`` modules whose composition is the backbone, an ``nn.Sequential``, with about as many layers each.

    A module without parameters, as an activation, belongs to the layer before it. ValueError for more levels than
    layers.
    """
    if count == 1:
        return [backbone]
    if not isinstance(backbone, nn.Sequential):
        raise ValueError(
            f"levels={count} needs a backbone that is a torch.nn.Sequential, not {type(backbone).__name__}."
        )
    layers: list[list[nn.Module]] = []
    before: list[nn.Module] = []  # the first layer
    for module in backbone:
        if any(True for _ in module.parameters()):
            layers.append([*before, module])
            before = []
        elif layers:
            layers[-1].append(module)
        else:
            before.append(module)
    if count > len(layers):
        raise ValueError(f"levels={count} must be at most {len(layers)}, the layers of the backbone.")
    bounds = [len(layers) * i // count for i in range(count + 1)]
    return [
        nn.Sequential(*(module for layer in layers[first:end] for module in layer)) for first, end in pairwise(bounds)
    ]
