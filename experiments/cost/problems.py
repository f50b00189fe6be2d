"""The problems: a trunk, K heads of one kind, and one batch of random data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from mtl.backbones import CausalTransformer, Timm
from mtl.engine.engine import Engine
from mtl.engine.precision import Precision
from mtl.heads import FPN, MLP, NextToken
from mtl.losses import TokenCrossEntropy
from mtl.model import MultiTaskModel
from mtl.tasks import Task

# timm's name, and the images' side.
IMAGES = {
    "resnet18-64": ("resnet18", 64),
    "resnet18-128": ("resnet18", 128),
    "vit_tiny-64": ("vit_tiny_patch16_224", 64),
    "convnext_atto-64": ("convnext_atto", 64),
    "test_resnet-32": ("test_resnet", 32),
    # of experiments/gpu
    "test_vit-32": ("test_vit", 32),
    "resnet50-224": ("resnet50", 224),
    "resnet50-352": ("resnet50", 352),  # about as many pixels as NYUv2's 288 x 384
    "vit_base-224": ("vit_base_patch16_224", 224),
}
CLASSES = 10
TRANSFORMERS = {
    "transformer": (256, 256, 4),
    "transformer-64": (64, 64, 1),
    "transformer-1024": (1024, 1024, 4),
}  # context, width, depth
VOCABULARY = {"bytes": 256, "vocabulary": 8192, "32k": 2**15, "64k": 2**16, "128k": 2**17}


@dataclass
class Problem:
    """A model, its tasks and one batch, on which every step of one process works; ``engine``: how the model runs."""

    model: MultiTaskModel
    tasks: list[Task]
    inputs: Any
    targets: dict[str, Tensor]

    @cached_property
    def engine(self) -> Engine:
        """In bf16 on a GPU."""
        on_cpu = next(self.model.parameters()).device.type == "cpu"
        return Engine(self.model, self.tasks, Precision(None if on_cpu else torch.bfloat16))


class Looped(nn.Linear):
    """A linear head that no strategy computes together with its like: only an ``nn.Linear`` itself is packed."""


class Scale(nn.Module):
    """A trunk that costs next to nothing: one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, inputs: Tensor) -> Tensor:
        """``[B, D]`` -> ``[B, D]``."""
        return inputs * self.scale


def problem(trunk: str, heads: str, tasks: int, batch: int, device: str = "cpu") -> Problem:
    """The same numbers for the same arguments; on a GPU in bf16.

    ``trunk``: one of IMAGES, also as ``resnet18-64+4096``, with a linear layer to so many features after it;
    of TRANSFORMERS, for heads of VOCABULARY; ``scale``, 512 features as they come.
    ``heads``: ``linear``, ``mlp`` and ``dense`` (of ten classes), ``binary`` and ``looped`` (linear, of one output).
    """
    torch.manual_seed(0)
    names = [f"task{k}" for k in range(tasks)]
    if trunk in TRANSFORMERS:
        made = _next_tokens(names, VOCABULARY[heads], batch, *TRANSFORMERS[trunk])
    elif trunk == "scale":
        made = _on_vectors(Scale(), torch.randn(batch, 512), heads, names)
    else:
        made = _on_images(trunk, heads, names, batch)
    model = made.model.to(device).train()
    targets = {name: target.to(device) for name, target in made.targets.items()}
    return Problem(model, made.tasks, made.inputs.to(device), targets)


def _on_images(trunk: str, heads: str, names: list[str], batch: int) -> Problem:
    trunk, _, width = trunk.partition("+")
    name, side = IMAGES[trunk]
    images = torch.randn(batch, 3, side, side)
    if heads == "dense":
        # Without the stem of a ResNet, which the heads do not read.
        pyramid = Timm(name, features="pyramid", image_size=side, options={"out_indices": [-4, -3, -2, -1]})
        channels = pyramid.model.feature_info.channels()
        made = {task: FPN(channels, CLASSES, side, **pyramid.feature_info) for task in names}
        targets = {task: torch.randint(CLASSES, (batch, side, side)) for task in names}
        return Problem(MultiTaskModel(pyramid, made), _tasks(names, nn.CrossEntropyLoss), images, targets)
    backbone: nn.Module = Timm(name, image_size=side)
    if width:
        backbone = nn.Sequential(backbone, nn.LazyLinear(int(width)))
    return _on_vectors(backbone, images, heads, names)


def _on_vectors(backbone: nn.Module, inputs: Tensor, heads: str, names: list[str]) -> Problem:
    with torch.no_grad():
        width = backbone.eval()(inputs[:2]).shape[1]  # in evaluation, or it would move the running statistics
    kinds: dict[str, Callable[[], nn.Module]] = {
        "linear": lambda: nn.Linear(width, CLASSES),
        "mlp": lambda: MLP(width, CLASSES),
        "binary": lambda: nn.Linear(width, 1),
        "looped": lambda: Looped(width, 1),
    }
    model = MultiTaskModel(backbone, {task: kinds[heads]() for task in names})
    if heads in ("binary", "looped"):
        labels = {task: torch.randint(2, (len(inputs), 1)).float() for task in names}
        return Problem(model, _tasks(names, nn.BCEWithLogitsLoss), inputs, labels)
    classes = {task: torch.randint(CLASSES, (len(inputs),)) for task in names}
    return Problem(model, _tasks(names, nn.CrossEntropyLoss), inputs, classes)


def _next_tokens(names: list[str], vocabulary: int, batch: int, context: int, width: int, depth: int) -> Problem:
    backbone = CausalTransformer(vocabulary, context, width, depth)
    model = MultiTaskModel(backbone, {task: NextToken(width, vocabulary) for task in names}, ["unembedding"])
    text = torch.randint(vocabulary, (batch, context + len(names)))
    targets = {task: text[:, k : context + k].contiguous() for k, task in enumerate(names, 1)}
    return Problem(model, _tasks(names, TokenCrossEntropy), text[:, :context].contiguous(), targets)


def _tasks(names: list[str], loss: Callable[[], nn.Module]) -> list[Task]:
    return [Task(name, loss()) for name in names]
