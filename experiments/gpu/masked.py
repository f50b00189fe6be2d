"""What an update costs that the device itself could leave out, for an optimizer without ``found_inf``:

    python experiments/gpu/masked.py

Such an update would keep copies of what it changes, and put them back where the step is not finite. Prints, for 25
million parameters in 159 tensors on one thread of the CPU: the optimizer's step, its operators, and each way's time
and memory.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from timm.optim import Lamb
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "lamb (timm)": lambda parameters: Lamb(parameters, lr=5e-3),
    "NAdam, foreach": lambda parameters: torch.optim.NAdam(parameters, foreach=True),
    "SGD with momentum, foreach": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9, foreach=True),
}


class Operators(TorchDispatchMode):
    """Counts the operators that are no views."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count it, and run it."""
        self.count += not any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        return func(*args, **(kwargs or {}))


def parameters(total: float = 25e6) -> list[nn.Parameter]:
    """53 layers as of a ResNet-50, each with the weight and bias of its norm; their gradients are drawn."""
    made = []
    for place in range(53):
        width = 64 * 2 ** (place * 4 // 53)
        for shape in ((width, int(total / 53 / width)), (width,), (width,)):
            made.append(nn.Parameter(torch.randn(shape)))
            made[-1].grad = torch.randn(shape)
    return made


def clocked(action: Callable[[], Any]) -> float:
    """The median CPU time of five calls, in ms."""
    times = []
    for _ in range(5):
        began = time.process_time()
        action()
        times.append(1e3 * (time.process_time() - began))
    return statistics.median(times)


def keep(tensors: list[Tensor], kept: list[Tensor]) -> None:
    """Before the update."""
    torch._foreach_copy_(kept, tensors)


def keep_and_put_back(tensors: list[Tensor], kept: list[Tensor], finite: Tensor) -> None:
    """Before and after it, decided on the device."""
    keep(tensors, kept)
    for tensor, before in zip(tensors, kept, strict=True):
        torch.where(finite, tensor, before, out=tensor)


def row(name: str, make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> str:
    """One optimizer's line."""
    own = parameters()
    optimizer = make(own)
    optimizer.step()
    with Operators() as counted:
        optimizer.step()
    state = [v for values in optimizer.state.values() for v in values.values() if isinstance(v, Tensor)]
    step, finite, cells = clocked(optimizer.step), torch.tensor(True), []
    for tensors in ([p.data for p in own], [*(p.data for p in own), *state]):
        kept = [torch.empty_like(tensor) for tensor in tensors]
        size = sum(tensor.numel() * tensor.element_size() for tensor in kept) / 2**20
        copied = clocked(lambda t=tensors, k=kept: keep(t, k))  # type: ignore[misc]
        whole = clocked(lambda t=tensors, k=kept: keep_and_put_back(t, k, finite))  # type: ignore[misc]
        cells.append(f"{copied:.0f} ms, {whole:.0f} ms, {size:.0f} MiB")
    return f"| {name} | {step:.0f} ms | {counted.count:,} | {' | '.join(cells)} |"


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("| optimizer | its step | operators | parameters kept, and put back | parameters and state |")
    print("| --- | --- | --- | --- | --- |")
    for name, make in OPTIMIZERS.items():
        print(row(name, make), flush=True)


if __name__ == "__main__":
    main()
