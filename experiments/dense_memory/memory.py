"""The peak memory of a step with K dense heads: python experiments/dense_memory/memory.py

Counts the bytes of live tensors above the parameters without computing anything: minutes, the same numbers on every
machine. Prints the table, draws memory.png.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.utils import _pytree as pytree

from mtl.architectures import MTAN
from mtl.architectures.read import Read
from mtl.backbones import Timm
from mtl.heads import FPN, DeepLab
from mtl.losses import BalancedBCE, CosineNormals, Focal, InverseDepth, MaskedL1
from mtl.model import MultiTaskModel
from mtl.strategies import Balanced, Detached, Naive
from mtl.system.memory import PeakMemory, without_data
from mtl.tasks import Task
from mtl.weightings import Equal

HERE = Path(__file__).parent
BATCH, SIDE = 8, 256
HEADS = (1, 3, 6)
MIB = 2**20
# What data=scenes has, in its shapes, and on the same targets two losses more: channels, loss, target.
TASKS: dict[str, tuple[int, nn.Module, str]] = {
    "segmentation": (6, nn.CrossEntropyLoss(), "segmentation"),
    "depth": (1, MaskedL1(), "depth"),
    "normals": (3, CosineNormals(), "normals"),
    "edges": (1, BalancedBCE(), "edges"),
    "nearness": (1, InverseDepth(), "depth"),
    "focal": (6, Focal(), "segmentation"),
}
KINDS: dict[str, Callable[..., nn.Module]] = {"FPN": FPN, "DeepLab": DeepLab, "MTAN and FPN": FPN}
PANELS = [(backbone, kind) for backbone in ("resnet18", "resnet50") for kind in ("FPN", "DeepLab")]
PANELS.append(("resnet18", "MTAN and FPN"))


class Ones(nn.Module):
    """A rule that only looks: what the rows cost is the same for every rule on their Gram matrix."""

    def forward(self, gram: torch.Tensor) -> torch.Tensor:
        """Weights of one."""
        return torch.ones(len(gram))


STRATEGIES: dict[str, Callable[[list[str]], nn.Module]] = {
    "naive": lambda names: Naive(Equal()),
    "detached": lambda names: Detached(Equal()),
    "balanced": lambda names: Balanced(Equal(), Ones(), names),
}


def dense_tasks(kind: str, heads: int, backbone: str, side: int = SIDE, batch: int = BATCH) -> tuple:
    """A pyramid with the first ``heads`` tasks' heads, in MTAN with their masks; its tasks, inputs and targets."""
    trunk, chosen = pyramid(backbone), dict(list(TASKS.items())[:heads])
    channels = trunk.model.feature_info.channels()
    made = {name: KINDS[kind](channels, width, side, **trunk.feature_info) for name, (width, _, _) in chosen.items()}
    shapes = {"depth": (1, side, side), "normals": (3, side, side), "edges": (1, side, side)}
    targets: dict[str, Any] = {"segmentation": torch.zeros(batch, side, side, dtype=torch.long)}
    targets |= {name: torch.ones(batch, *shape) for name, shape in shapes.items()}
    tasks = [Task(name, loss) for name, (_, loss, _) in chosen.items()]
    own, inputs = {name: targets[target] for name, (_, _, target) in chosen.items()}, torch.zeros(batch, 3, side, side)
    if not kind.startswith("MTAN"):
        return MultiTaskModel(trunk, made), tasks, inputs, own
    maps, readers = masks(backbone, list(chosen))
    return MultiTaskModel(maps, {name: Read(readers[name], head) for name, head in made.items()}), tasks, inputs, own


def pyramid(backbone: str) -> Any:
    """A ResNet without the level of stride 2, which neither head reads."""
    return Timm(backbone, features="pyramid", options={"out_indices": [1, 2, 3, 4]})


def masks(backbone: str, tasks: list[str]) -> tuple[nn.Module, nn.ModuleDict]:
    """The trunk and the readers of MTAN, whose masks are made by a first forward pass, of tensors that have data."""
    fake = isinstance(torch.empty(()), FakeTensor)
    with unset_fake_temporarily(), torch.no_grad():
        attention = MTAN(lambda: pyramid(backbone), tasks)
        readers = nn.ModuleDict({task: attention.reader(task) for task in tasks})
        features = attention.trunk(torch.zeros(2, 3, 64, 64))
        for reader in readers.values():
            reader(features)
    for module in nn.ModuleList([attention.trunk, readers]).modules() if fake else ():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(torch.empty(parameter.shape)))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))
    return attention.trunk, readers


def peak(strategy: str, kind: str, heads: int, backbone: str, **size: int) -> float:
    """The peak of one step in MiB above the parameters."""
    with without_data():
        model, tasks, inputs, targets = dense_tasks(kind, heads, backbone, **size)
        with PeakMemory() as memory:
            STRATEGIES[strategy]([task.name for task in tasks]).step(model, tasks, inputs, targets)
    return memory.peak / MIB


def parts(kind: str, backbone: str) -> dict[str, float]:
    """What every peak has in it, in MiB: the gradients of the trunk and of a head, and a task's row."""
    with without_data():
        model, _, inputs, _ = dense_tasks(kind, 1, backbone)
        row = sum(z.numel() for z in pytree.tree_leaves(model.backbone(inputs)) if z is not None)
        numbers = (
            sum(p.numel() for p in model.shared_parameters()),
            sum(p.numel() for p in model.head_parameters()),
            row,
        )
    return dict(zip(("trunk", "head", "row"), (4 * n / MIB for n in numbers), strict=True))


def table(title: str, peaks: dict[str, list[float]]) -> str:
    """A line a strategy: the peaks, and what they are of naive's."""
    lines = [f"| {title} | " + " | ".join(f"K = {n}" for n in HEADS) + " | a further head |", "|---" * 5 + "|"]
    for strategy, row in peaks.items():
        cells = [f"{mib:,.0f} ({mib / naive:.2f})" for mib, naive in zip(row, peaks["naive"], strict=True)]
        slope = (row[-1] - row[1]) / (HEADS[-1] - HEADS[1])
        lines.append(f"| {strategy} | " + " | ".join(cells) + f" | {slope:,.0f} |")
    return "\n".join(lines)


def draw(measured: dict[str, dict[str, list[float]]], path: Path) -> None:
    """A panel a kind of head: the peaks over the number of heads."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 3.6), layout="constrained")
    for axes, (title, peaks) in zip(figure.subplots(1, len(measured)), measured.items(), strict=True):
        for name, row in peaks.items():
            axes.plot(HEADS, row, "o-", label=name)
        axes.set(title=title, xlabel="dense heads K", xticks=HEADS, ylim=(0, None))
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("peak of a step above the parameters, MiB")
    figure.axes[0].legend()
    figure.savefig(path, dpi=100)


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE, help="folder of memory.png")
    options = parser.parse_args()
    measured = {}
    for backbone, kind in PANELS:
        title = f"{backbone}, {kind}"
        measured[title] = {name: [peak(name, kind, n, backbone) for n in HEADS] for name in STRATEGIES}
        own = ", ".join(f"{name} {mib:,.1f}" for name, mib in parts(kind, backbone).items())
        print(f"{table(title, measured[title])}\n\nMiB of gradients: {own}\n", flush=True)
    draw(measured, options.out / "memory.png")


if __name__ == "__main__":
    main()
