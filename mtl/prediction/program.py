"""A trained model as one module for other runtimes: prepared inputs -> each task's answer, as tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mtl.data.preprocess import ImagePreprocess
from mtl.prediction.predictor import Predictor

SEPARATOR = "."  # between the keys of nested inputs


class Program(nn.Module):
    """What a predictor says of a batch, with all that is tensor work inside.

    Images ``[B, channels, H, W]`` are float32 from 0 to 1 in the model's size; the normalisation is inside. Other
    inputs are as the preprocess gives them, one argument a tensor: ``names`` are theirs. ``forward`` returns one tensor
    a task, in the order of ``tasks``: probabilities of classes and labels, numbers in their unit, normals of length
    one, and of text the probabilities of the next token. ValueError for a model whose outputs are no tensors.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        others = [task for task, answer in predictor.answers.items() if answer.kind == "output"]
        if others:
            raise ValueError(f"{others[0]}: its output has no meaning that mtl knows; leave it out by --tasks.")
        self.model, self.tasks, self._answers = predictor.model, predictor.tasks, predictor.answers
        self._info = predictor.description["input_info"]  # below which numbers codes and tokens are
        self._per_task = bool(predictor.description["inputs_per_task"])
        shapes = predictor.description["sample"]["inputs"]
        self._shapes = next(iter(shapes.values())) if self._per_task else shapes
        own = predictor.preprocess
        self.is_image = isinstance(own, ImagePreprocess)
        self.names = ["images"] if self.is_image else list(_flat(self._shapes)) or ["inputs"]
        if self.is_image:
            channels = [1, len(own.normalize.mean), 1, 1]
            self.register_buffer("mean", torch.tensor(own.normalize.mean).reshape(channels), persistent=False)
            self.register_buffer("std", torch.tensor(own.normalize.std).reshape(channels), persistent=False)
        for task, answer in self._answers.items():
            for name, values in zip(("mean", "std"), answer.scale or (), strict=False):
                self.register_buffer(f"{name}_of_{task}", torch.tensor(values, dtype=torch.float32), persistent=False)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The answers of a batch."""
        if self.is_image:
            own: Any = (inputs[0] - self.mean) / self.std
        else:
            own = _nested(self._shapes, dict(zip(self.names, inputs, strict=True)))
        outputs = self.model(dict.fromkeys(self.tasks, own) if self._per_task else own)
        return tuple(self._in_units(task, outputs[task]) for task in self.tasks)

    def example(self, count: int, seed: int = 0) -> tuple[Tensor, ...]:
        """Random inputs for ``count`` samples, of the shapes and within the bounds that the data have."""
        generator = torch.Generator().manual_seed(seed)
        flat = _flat(self._shapes) or {"inputs": self._shapes}
        return tuple(self._random(name, own, count, generator) for name, own in flat.items())

    def _random(self, name: str, shape: Mapping[str, Any], count: int, generator: torch.Generator) -> Tensor:
        size, kind = [count, *shape["shape"][1:]], getattr(torch, shape["dtype"])
        if kind.is_floating_point:
            return torch.rand(size, generator=generator).to(kind)
        if kind == torch.bool:
            return torch.ones(size, dtype=torch.bool)
        draws = torch.rand(size, generator=generator)
        if name == "categories":
            return (draws * torch.tensor(self._info["categories"])).to(kind)
        below = self._info.get("vocabulary", 1) if name.rpartition(SEPARATOR)[2] in ("tokens", "inputs") else 1
        return (draws * below).to(kind)

    def _in_units(self, task: str, output: Tensor) -> Tensor:
        values = self._answers[task].terms(output)
        if self._answers[task].scale is None:
            return values
        mean, std = (getattr(self, f"{n}_of_{task}").reshape(-1, *[1] * (values.dim() - 2)) for n in ("mean", "std"))
        return values * std + mean


def _is_shape(shapes: Any) -> bool:
    return isinstance(shapes, Mapping) and shapes.keys() == {"shape", "dtype"}


def _flat(shapes: Any, prefix: str = "") -> dict[str, Mapping[str, Any]]:
    """The shapes of a nesting by the names of their places; empty for one tensor without a name."""
    if _is_shape(shapes):
        return {prefix: shapes} if prefix else {}
    items = shapes.items() if isinstance(shapes, Mapping) else enumerate(shapes)
    join = f"{prefix}{SEPARATOR}" if prefix else ""
    return {name: own for key, part in items for name, own in _flat(part, f"{join}{key}").items()}


def _nested(shapes: Any, values: Mapping[str, Tensor], prefix: str = "") -> Any:
    """The tensors in the nesting that they are flattened from."""
    if _is_shape(shapes):
        return values[prefix or "inputs"]
    join = f"{prefix}{SEPARATOR}" if prefix else ""
    if isinstance(shapes, Mapping):
        return {key: _nested(part, values, f"{join}{key}") for key, part in shapes.items()}
    return [_nested(part, values, f"{join}{i}") for i, part in enumerate(shapes)]
