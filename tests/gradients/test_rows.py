"""Rows of bfloat16 features, which may stay in bfloat16; and what a step with rows takes, counted without a device."""

import pytest
import torch
from support.device import OnDevice, Waits
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mtl.gradients import rows as module
from mtl.gradients.cut import Cut
from mtl.gradients.rows import ParameterRows, Rows, parameter_grams
from mtl.model import MultiTaskModel
from mtl.strategies import Balanced, Detached, Naive
from mtl.system.memory import PeakMemory, without_data
from mtl.tasks import Task
from mtl.weightings import Equal

COUNT, BATCH, WIDTH = 8, 64, 512


def filled(leaves, compact, scale=1.0):
    torch.manual_seed(0)
    rows = Rows().start(COUNT, leaves, compact)
    for _ in range(COUNT):
        rows.append([torch.randn_like(leaf) * 3 for leaf in leaves], scale)
    return rows


def test_compact_rows_give_the_bits_of_wide_ones():
    leaves = [torch.empty(5, 40_000, dtype=torch.bfloat16), torch.empty(5, 3, dtype=torch.bfloat16)]
    compact, wide = filled(leaves, True), filled(leaves, False)
    assert [block.dtype for rows in (compact, wide) for block in rows.blocks()] == [torch.bfloat16, torch.float32]
    assert torch.equal(compact.gram(), wide.gram())
    assert torch.equal(compact.batch_summed_gram(), wide.batch_summed_gram())
    weights = torch.linspace(-1, 2.3, COUNT, dtype=torch.float64)
    for own, other, leaf in zip(compact.combine(weights), wide.combine(weights), leaves, strict=True):
        # One rounding of 2^-9; a sum of eight products may be formed in another order.
        assert own.dtype == leaf.dtype and torch.allclose(own.float(), other, rtol=2**-8, atol=1e-6)
    rounded = weights.bfloat16().float() @ compact.blocks()[0].float()
    exact = torch.cat([tensor.flatten() for tensor in wide.combine(weights)])
    assert not torch.allclose(rounded, exact, rtol=2**-8, atol=1e-6), "negative control: weights in bfloat16"
    assert compact.row(3)[0].equal(wide.row(3)[0].bfloat16()) and len(compact.row(3)) == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_only_bfloat16_is_kept_as_it_is(dtype):
    """A gradient of float16 with its loss scale divided out may be too small for float16."""
    rows = Rows().start(1, [torch.empty(2, dtype=dtype)], compact=True)
    rows.append([torch.full((2,), 2.0**-10, dtype=dtype)], 2.0**16)
    assert rows.blocks()[0].dtype == torch.promote_types(dtype, torch.float32)
    assert rows.blocks()[0].eq(2.0**-26).all()


def test_compact_rows_cannot_be_scaled():
    rows = filled([torch.empty(4, 2, dtype=torch.bfloat16)], True)
    with pytest.raises(AssertionError, match="compact"):
        rows.scale([torch.tensor(0.3)] * COUNT)
    with pytest.raises(AssertionError, match="compact"):
        filled([torch.empty(4, 2, dtype=torch.bfloat16)], True, scale=3.0)


class Ones(nn.Module):
    """A rule that only looks."""

    def forward(self, gram):
        return torch.ones(len(gram))


class OnRows(Ones):
    needs_rows = True

    def combine(self, rows, gram):
        return [block.sum(0) for block in rows], torch.ones(len(gram))


def peak(strategy, count, dtype=torch.float32, device="cpu", width=WIDTH, batch=BATCH):
    """The peak of a step in bytes; each head has as many outputs as there are features."""
    with without_data():
        names = [f"task{i}" for i in range(count)]
        make = dict(dtype=dtype, device=device)
        heads = {name: nn.Sequential(nn.Linear(WIDTH, width, **make), nn.Tanh()) for name in names}
        model = MultiTaskModel(nn.Linear(4, WIDTH, **make), heads)
        targets = {name: torch.zeros(batch, width, **make) for name in names}
        inputs = torch.zeros(batch, 4, **make)
        tasks = [Task(name, nn.MSELoss()) for name in names]
        own = strategy(names)
        with PeakMemory() as memory:
            own.step(model, tasks, inputs, targets)
    return memory.peak


def test_rows_of_bfloat16_features_take_half_the_memory():
    size = dict(dtype=torch.bfloat16, batch=8192)
    plain = peak(lambda names: Detached(Equal()), COUNT, **size)
    for rule, each in ((Ones, 2), (OnRows, 4)):  # a rule on rows has them in float32, as before
        more = peak(lambda names, rule=rule: Balanced(Equal(), rule(), names), COUNT, **size) - plain
        assert more == pytest.approx(COUNT * 8192 * WIDTH * each, rel=0.15), rule


def test_on_a_device_without_data_detached_is_flat_and_naive_grows():
    """Above the heads' own gradients: what is alive of the activations, on tensors that lie on no CPU."""
    strategies = {"naive": lambda names: Naive(Equal()), "detached": lambda names: Detached(Equal())}
    found = {}
    for device in ("cpu", "meta"):
        for name, strategy in strategies.items():
            # Large batches, beside which the gradients of the heads are small.
            few, many = (peak(strategy, count, device=device, width=1024, batch=8192) for count in (4, 12))
            found[name, device] = (many - few) / 8 - 4 * 1024 * (WIDTH + 1)
    activations = 8192 * 1024 * 4
    for device in ("cpu", "meta"):
        assert abs(found["detached", device]) < 0.01 * activations
        assert found["naive", device] > 0.9 * activations
    assert found["naive", "cpu"] == found["naive", "meta"]


# -------------------------------------------------------------------------------------------- launches, and one wait


class Launches(TorchDispatchMode):
    """Counts the operators that launch something: no views, and no memory."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        views = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        self.count += not views and "empty" not in str(func)
        return func(*args, **(kwargs or {}))


def parameter_rows(place, sizes, tasks=3):
    torch.manual_seed(0)
    parameters = [torch.zeros(size) for size in sizes]
    own = ParameterRows([place(p) for p in parameters])
    for _ in range(tasks):
        own.append([place(torch.randn_like(p)) for p in parameters])
    return own


def test_small_parameters_of_a_device_are_multiplied_together(monkeypatch):
    monkeypatch.setattr(module, "chunk_size", lambda device: 100)
    sizes = [7, 60, 40, 3, 250, 5, 5, 100, 1]  # [7, 60], [40, 3], [250], [5, 5], [100], [1]
    launches = {}
    for name, place in {"cpu": lambda x: x, "device": OnDevice}.items():
        own = parameter_rows(place, sizes)
        with Waits() as waits, Launches() as counted:
            gram = own.gram()
        launches[name] = counted.count
        exact = torch.zeros(3, 3, dtype=torch.float64)
        for place in range(len(sizes)):
            stacked = torch.stack([row[place] for row in parameter_rows(lambda x: x, sizes)._rows]).double()
            exact += stacked @ stacked.T
        assert torch.allclose(gram, exact, rtol=0, atol=1e-6 * exact.max())
        assert waits.count == (name == "device")
    assert [len(run) for run in module._runs(own._parameters)] == [2, 2, 1, 2, 1, 1]
    assert launches["device"] < launches["cpu"]


def test_several_gram_matrices_are_one_copy_each_with_its_own_range():
    every = [parameter_rows(OnDevice, [5, 4]), parameter_rows(OnDevice, [3]), parameter_rows(OnDevice, [6])]
    for row in every[1]._rows:  # squares that leave float32's range
        torch._foreach_mul_(row, 1e25)
    with Waits() as waits:
        found = parameter_grams(every)
    assert waits.count == 2, waits.places  # all of them, and the large one anew
    assert all(torch.equal(gram, own.gram()) for gram, own in zip(found, every, strict=True))
    assert found[1].diagonal().gt(1e49).all() and found[1].isfinite().all()


def test_a_pyramid_is_collected_in_one_operator_a_head_bit_by_bit():
    torch.manual_seed(0)
    shapes, tasks = [(2, 5), (2, 3), (2, 4), (2, 6)], 5
    gradients = [[torch.randn(shape) for shape in shapes] for _ in range(tasks)]
    gradients[1][2] = gradients[0][3] = None  # a level that a head does not read
    kept = Rows()
    cut = Cut([torch.randn(shape) for shape in shapes], kept)
    kept.start(tasks, cut.leaves)
    with Launches() as counted:
        for own in gradients:
            for leaf, gradient in zip(cut.leaves, own, strict=True):
                leaf.grad = None if gradient is None else gradient.clone()
            cut.collect(0.3)
    clones = 4 * tasks - 2
    # The row's copy and the factor; its sum but for the first head; the level that it does not read.
    assert counted.count == clones + 2 * tasks + (tasks - 1) + 2
    for level, total in enumerate(cut._sum):
        exact = None
        for own in gradients:
            if own[level] is not None:
                exact = own[level] * 0.3 if exact is None else exact + own[level] * 0.3
        assert torch.equal(total, exact)
    for task, own in enumerate(gradients):
        rows = zip(kept.row(task), own, strict=True)
        assert all(torch.equal(row, torch.zeros_like(row) if g is None else g) for row, g in rows)
