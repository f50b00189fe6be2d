import torch
from torch import nn

from mtl.memory import PeakMemory
from mtl.model import MultiTaskModel, Task
from mtl.strategies import Detached, Naive
from mtl.weightings import Equal

KIB = 256  # float32 numbers


def test_live_storages_are_counted_and_views_and_inplace_results_are_not():
    before = torch.ones(64 * KIB)
    with PeakMemory() as memory:
        a = before * 2  # 64 KiB
        a.view(-1, 2).add_(1)
        b = a + a  # 128
        del a, b
        c = torch.empty(16 * KIB)  # 16
    assert memory.peak == 128 * 1024
    assert memory.live == 16 * 1024
    del c
    assert memory.live == 0


def peak(strategy, heads, outputs=2000):
    torch.manual_seed(0)
    names = [str(i) for i in range(heads)]
    model = MultiTaskModel(nn.Linear(8, 16), {n: nn.Linear(16, outputs) for n in names})
    tasks = [Task(n, nn.CrossEntropyLoss()) for n in names]
    x, y = torch.randn(64, 8), {n: torch.randint(outputs, (64,)) for n in names}
    with PeakMemory() as memory:
        strategy(Equal()).step(model, tasks, x, y)
    return memory.peak


def test_detached_is_flat_in_the_number_of_heads_and_naive_is_not():
    """The slope per head is that head's own parameter gradients; naive adds one log-softmax a head."""
    gradients = (16 + 1) * 2000 * 4
    logits = 64 * 2000 * 4
    slope = (peak(Detached, 8) - peak(Detached, 2)) / 6
    assert gradients <= slope <= 1.1 * gradients
    assert (peak(Naive, 8) - peak(Naive, 2)) / 6 >= logits
    assert peak(Detached, 8) == peak(Detached, 8)
