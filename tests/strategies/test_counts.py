"""What a step costs, in numbers that no machine changes: passes, graphs, rows, and waits for the device."""

import weakref
from unittest.mock import patch

import pytest
import torch
from support.networks import make
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from mtl.gradients.cut import Cut
from mtl.gradients.rows import Rows
from mtl.model import MultiTaskModel
from mtl.rules import MGDA, CAGrad, GradDrop, NashMTL, PCGrad, UPGrad
from mtl.strategies import Balanced, Detached, Naive
from mtl.system.memory import PeakMemory
from mtl.tasks import Task
from mtl.weightings import DWA, GLS, UW, Equal, Log, Static

WIDTH = 24


class Passes(torch.autograd.Function):
    """The identity, which counts the backward passes through it and how many of its graphs are alive."""

    @staticmethod
    def forward(ctx, x, count):
        ctx.count, ctx.alive = count, Alive()
        count.forward(ctx.alive)
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        ctx.count.backwards += 1
        return gradient, None


class Alive:
    pass


class Count:
    def __init__(self):
        self.backwards = self.now = self.peak = 0

    def forward(self, graph):
        self.now += 1
        self.peak = max(self.peak, self.now)
        weakref.finalize(graph, self.freed)

    def freed(self):
        self.now -= 1


class Counted(nn.Module):
    def __init__(self, module, count):
        super().__init__()
        self.module, self.count = module, count

    def forward(self, x):
        return Passes.apply(self.module(x), self.count)


class HostReads(TorchFunctionMode):
    """Counts what waits for a device: reading a tensor that lies there.

    ``there``, what is made with a device, and all that follows from such tensors counts as the device's, until it is
    read.
    """

    READS = (Tensor.item, Tensor.tolist, Tensor.cpu, Tensor.numpy, Tensor.__bool__, Tensor.__float__, Tensor.__int__)

    def __init__(self, *there):
        super().__init__()
        self.reads, self._there = [], {}
        self._mark(there)

    def _mark(self, values):
        made = [value for value in pytree.tree_leaves(values) if isinstance(value, Tensor)]
        self._there |= {id(value): value for value in made}  # kept, so that no other tensor has its id

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        there = "device" in kwargs or any(id(value) in self._there for value in pytree.tree_leaves((args, kwargs)))
        if there and func in self.READS:
            self.reads.append(func.__name__)
            return func(*[a.clone() if isinstance(a, Tensor) else a for a in args], **kwargs)
        result = func(*args, **kwargs)
        if there:
            self._mark(result)
        return result


def names(count):
    return [f"task{i}" for i in range(count)]


def problem(count, heads=lambda: nn.Sequential(nn.Linear(WIDTH, 3)), loss=nn.CrossEntropyLoss):
    torch.manual_seed(0)
    trunk, head = Count(), Count()
    backbone = Counted(nn.Sequential(nn.Linear(3, WIDTH), nn.Tanh()), trunk)
    model = MultiTaskModel(backbone, {name: Counted(heads(), head) for name in names(count)})
    tasks = [Task(name, loss()) for name in names(count)]
    return model, tasks, torch.randn(5, 3), {name: torch.randint(3, (5,)) for name in names(count)}, trunk, head


STRATEGIES = {
    "naive": lambda k: Naive(Equal()),
    "detached": lambda k: Detached(Equal()),
    "static": lambda k: Detached(Static(names(k), {"task0": 0.5})),
    "learned": lambda k: Detached(UW(names(k))),
    "log": lambda k: Detached(Log()),
    "late": lambda k: Detached(GLS()),
    "DWA": lambda k: Detached(DWA(names(k), steps_per_epoch=5)),
    "MGDA": lambda k: Balanced(Equal(), MGDA(), names(k)),
    "PCGrad": lambda k: Balanced(Equal(), PCGrad(), names(k), head_scale="weights"),
    "CAGrad": lambda k: Balanced(Equal(), CAGrad(), names(k)),
    "UPGrad": lambda k: Balanced(Equal(), UPGrad(), names(k)),
    "NashMTL": lambda k: Balanced(Equal(), NashMTL(), names(k)),
    "GradDrop": lambda k: Balanced(Equal(), GradDrop(), names(k)),
    "summed": lambda k: Balanced(Equal(), MGDA(), names(k), space="features_sum"),
}


@pytest.mark.parametrize("count", [1, 2, 8])
@pytest.mark.parametrize("measure", [False, True], ids=["plain", "measured"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_one_trunk_backward_and_one_heads_graph_whatever_the_number_of_tasks(name, measure, count):
    model, *batch, trunk, head = problem(count)
    STRATEGIES[name](count).step(model, *batch, measure=measure)
    assert trunk.backwards == 1
    assert head.peak == (count if name == "naive" else 1) and head.now == 0
    assert head.backwards == (2 * count if name == "naive" and measure else count)


@pytest.mark.parametrize("count", [2, 3, 8])
def test_parameter_space_costs_a_trunk_backward_a_task(count):
    model, *batch, trunk, head = problem(count)
    Balanced(Equal(), MGDA(), names(count), space="parameters").step(model, *batch)
    assert trunk.backwards == count and head.peak == 1


@pytest.mark.parametrize("count, expected", [(2, 2), (4, 4), (8, 3)])
@pytest.mark.parametrize("name", ["detached", "MGDA"])
def test_the_audit_of_up_to_four_tasks_costs_one_less_than_they_are_and_of_more_a_pair(name, count, expected):
    model, *batch, trunk, head = problem(count)
    STRATEGIES[name](count).step(model, *batch, audit=True)
    assert trunk.backwards == expected and head.peak == 1


def test_steps_between_two_of_a_rule_keep_no_rows():
    model, *batch, _, _ = problem(3)
    strategy, kept = Balanced(Equal(), MGDA(), names(3), every=4), []
    for _ in range(8):
        kept.append(rows_kept(strategy, model, batch))
    assert kept == [3, 0, 0, 0, 3, 0, 0, 0]


def rows_kept(strategy, model, batch, **asked):
    with patch.object(Rows, "append", autospec=True, side_effect=Rows.append) as append:
        strategy.step(model, *batch, **asked)
    return append.call_count


@pytest.mark.parametrize("name", STRATEGIES)
def test_rows_are_kept_only_where_something_needs_them(name):
    model, *batch, _, _ = problem(4)
    needs_them = name in ("late", "MGDA", "PCGrad", "CAGrad", "UPGrad", "NashMTL", "GradDrop", "summed")
    assert rows_kept(STRATEGIES[name](4), model, batch) == 4 * needs_them
    assert rows_kept(STRATEGIES[name](4), model, batch, measure=True) == 4


def test_a_rule_keeps_its_buffer_from_step_to_step():
    model, *batch, _, _ = problem(4)
    strategy = STRATEGIES["MGDA"](4)
    strategy.step(model, *batch)
    before = [block.data_ptr() for block in strategy._rows.blocks()]
    strategy.step(model, *batch)
    assert [block.data_ptr() for block in strategy._rows.blocks()] == before


@pytest.mark.parametrize("name, kept", [("detached", 0), ("MGDA", 0), ("GradDrop", 0)])
def test_equal_heads_of_one_output_keep_no_rows(name, kept):
    torch.manual_seed(0)
    model = MultiTaskModel(nn.Linear(3, WIDTH), {name: nn.Linear(WIDTH, 1) for name in names(8)})
    tasks = [Task(name, nn.BCEWithLogitsLoss()) for name in names(8)]
    batch = tasks, torch.randn(5, 3), {name: torch.rand(5, 1) for name in names(8)}
    assert rows_kept(STRATEGIES[name](8), model, batch, measure=True) == kept


@pytest.mark.parametrize("count", [2, 8])
@pytest.mark.parametrize("name", STRATEGIES)
def test_the_host_waits_once_for_the_labels_and_once_for_the_gram_matrix(name, count):
    """Each wait empties a GPU's queue."""
    model, *batch, _, _ = problem(count)
    balanced = isinstance(STRATEGIES[name](count), Balanced)
    for measure in (False, True):
        with HostReads(list(model.parameters()), batch[1:]) as host:
            STRATEGIES[name](count).step(model, *batch, measure=measure)
        shares = name == "GradDrop"  # how much of each row is in its direction
        assert host.reads == ["tolist", *["cpu"] * ((measure or balanced) + shares)]


def test_without_missing_labels_the_host_never_waits():
    model, *batch, _, _ = problem(
        3, loss=lambda: lambda prediction, target: prediction[range(5), target].square().mean()
    )
    with HostReads(list(model.parameters()), batch[1:]) as host:
        Detached(Equal()).step(model, *batch)
    assert host.reads == []


def peak(strategy, kind, count):
    model, *batch = make(kind, count)
    with PeakMemory() as memory:
        strategy.step(model, *batch)
    return memory.peak


@pytest.mark.parametrize("count", [1, 2, 16])
@pytest.mark.parametrize("kind", ["pooled", "tokens", "pyramid"])
def test_detached_needs_no_byte_more_than_naive_and_only_its_gradients_for_another_head(kind, count):
    model, _, inputs, _ = make(kind, count)
    another = sum(p.numel() * 8 for p in model.heads["task0"].parameters())
    features = sum(leaf.numel() * 8 for leaf in Cut(model.backbone(inputs)).leaves)
    alone = peak(Detached(Equal()), kind, 1)
    bound = alone + (count - 1) * (another + 16) + features * (count > 1)  # and its loss and weight; and their sum
    assert peak(Detached(Equal()), kind, count) <= min(bound, peak(Naive(Equal()), kind, count))
    if count == 16 and kind != "pooled":  # whose heads' graphs are as small as their gradients
        assert peak(Naive(Equal()), kind, count) > bound


def test_a_loss_in_the_result_holds_no_more_than_one_number():
    model, tasks, inputs, targets, _, _ = problem(2, loss=nn.MSELoss)
    targets = {name: torch.randn(5, 3) for name in targets}
    for strategy in (Naive(Equal()), Detached(Equal())):
        result = strategy.step(model, tasks, inputs, targets)
        assert all(loss.untyped_storage().nbytes() == 4 for loss in result.losses.values())
    predictions = model(inputs)
    assert nn.MSELoss()(predictions["task0"], targets["task0"]).untyped_storage().nbytes() > 4


def test_the_count_of_reads_sees_one():
    with HostReads() as host:
        weight = torch.ones(3, device="cpu")
        host_only = torch.ones(3)
        host_only.sum().item()
        (weight * host_only).sum().item()
        weight.cpu().tolist()
    assert host.reads == ["item", "cpu"]
