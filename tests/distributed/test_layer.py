"""Two ranks with a Balance layer under DistributedDataParallel and FSDP2 train as one process on the whole batch."""

import time
from contextlib import nullcontext
from datetime import timedelta
from functools import partial

import pytest
import torch
import torch.distributed as dist
from support.ranks import run_ranks
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

import mtl
from mtl.distributed import bounded
from mtl.distributed.sharding import full_tensor
from mtl.rules import DBMTL, MGDA, GradDrop, GradVac, NashMTL, Sum, TrimmedMean, UPGrad

TASKS, PART, STEPS = ["a", "b", "c"], 4, 4
RULES = {
    "Sum": Sum, "MGDA": MGDA, "UPGrad": UPGrad, "NashMTL": NashMTL, "GradVac": lambda: GradVac(3, beta=0.5),
    "GradDrop": GradDrop, "TrimmedMean": TrimmedMean,
}  # fmt: skip
CASES = {
    **{f"{name}, {how}": dict(rule=rule, how=how) for name, rule in RULES.items() for how in ("whole", "absent")},
    "accumulated": dict(rule=NashMTL, how="accumulated"),
    "every second": dict(rule=NashMTL, how="absent", every=2),
    "loss scale": dict(rule=NashMTL, how="whole", loss_scale=64.0),
    "losses": dict(rule=lambda: ByLosses(), how="absent"),
    "measures only": dict(rule=lambda: None, how="absent"),
    "functional": dict(rule=NashMTL, how="whole", functional=True),
}


class ByLosses(nn.Module):
    def forward(self, gram, losses):
        return losses / losses.sum()


class Model(nn.Module):
    def __init__(self, layer):
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(6, 8), nn.Tanh())
        self.heads = nn.ModuleDict({task: nn.Linear(8, 2) for task in TASKS})
        self.layer = layer
        self.double()

    def forward(self, x, tasks):
        z = self.trunk(x)
        own = dict.fromkeys(tasks, z) if self.layer is None else self.layer(z)
        return z, {task: self.heads[task](own[task]) for task in tasks}


def present(how, rank, step):
    """Rank 1 lacks task b in the first and the last step."""
    return [task for task in TASKS if not (how == "absent" and rank == 1 and step in (0, STEPS - 1) and task == "b")]


def losses_of(out, target, rows):
    """One loss a task, each with its own target."""
    return {task: (out[task][rows] - (TASKS.index(task) + 1) * target[rows]).square().mean() for task in out}


def train(case, ranks, wrap=None):
    """The parameters after a few steps on the part of this rank, or of ``ranks`` in one process; and all weights."""
    how, scale = case["how"], case.get("loss_scale", 1.0)
    options = {key: case[key] for key in ("every", "loss_scale") if key in case}
    functional = case.get("functional", False)
    model = Model(None if functional else mtl.Balance(case["rule"](), TASKS, **options))
    rule = case["rule"]() if functional else None
    run = model if wrap is None else wrap(model, how)
    optimizer, weights = torch.optim.SGD(model.parameters(), lr=0.1), []
    for step in range(STEPS):
        for micro in range(2 if how == "accumulated" else 1):
            generator = torch.Generator().manual_seed(10 * step + micro)
            x, y = (torch.randn(2 * PART, n, generator=generator, dtype=torch.float64) for n in (6, 2))
            own = slice(ranks[0] * PART, (ranks[-1] + 1) * PART)
            x, y = x[own], y[own]
            last = micro == 1 or how != "accumulated"
            with nullcontext() if last or wrap is None else unsynchronised(run):
                anywhere = [task for task in TASKS if any(task in present(how, rank, step) for rank in ranks)]
                z, out = run(x, anywhere)
                losses = dict.fromkeys(anywhere, 0.0)
                for number, rank in enumerate(ranks):  # the mean of the ranks' losses, as DDP makes it
                    rows = slice(number * PART, (number + 1) * PART)
                    here = losses_of(out, y, rows)
                    for task in present(how, rank, step):
                        losses[task] = losses[task] + here[task] / len(ranks)
                if functional:
                    seen = mtl.backward({task: losses.get(task) for task in TASKS}, z, rule)
                else:
                    if getattr(model.layer._call, "needs_losses", False):
                        model.layer.losses(losses)
                    (scale * sum(losses.values())).backward()
                    seen = model.layer.last
                weights.append(seen.weights)
        for p in model.parameters():
            p.grad = None if p.grad is None else p.grad / scale
        optimizer.step()
        optimizer.zero_grad()
    state = {name: full_tensor(p.detach()) for name, p in model.named_parameters()}
    return state, weights


def unsynchronised(run):
    if isinstance(run, DistributedDataParallel):
        return run.no_sync()
    return nullcontext()


def distributed(model, how):
    return DistributedDataParallel(model, find_unused_parameters=how == "absent")


def sharded(model, how):
    for part in (model.trunk, model):
        fully_shard(part).set_force_sum_reduction_for_comms(True)  # gloo can only sum; the mean is taken all the same
    return model


RUNS = {("ddp", name): distributed for name in CASES}
RUNS |= {("fsdp2", f"{name}, whole"): sharded for name in ("NashMTL", "GradDrop", "GradVac")}  # it averages as DDP does


class Encoder(nn.Module):
    """A model whose output is the layer's."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.layer = nn.Linear(6, 8).double(), mtl.Balance(MGDA(), ["a", "b"])

    def forward(self, x):
        return self.layer(self.trunk(x))


def encoded(ranks, wrap=None):
    """The trunk's gradients of two steps."""
    model, found = Encoder(), []
    run = model if wrap is None else wrap(model)
    x = torch.randn(2 * PART, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for _ in range(2):
        model.zero_grad()
        z = run(x[ranks[0] * PART : (ranks[-1] + 1) * PART])
        (z["a"].square().mean() + (z["b"] - 1).square().mean()).backward()
        found.append(model.trunk.weight.grad.clone())
    return found


def two_layers(rank):
    """Each rank comes to a layer of its own."""
    layer, z = mtl.Balance(MGDA(), [["a", "b"], ["c", "d"]][rank]), torch.randn(3, 2, requires_grad=True)
    one, two = layer(z).values()
    with pytest.raises(
        RuntimeError, match="to another layer at once: every rank must send its losses backward through"
    ):
        (one.sum() + two.square().sum()).backward()


def train_all():
    rank = dist.get_rank()
    found = {(how, name): train(CASES[name], [rank], wrap) for (how, name), wrap in RUNS.items()}
    with pytest.raises(RuntimeError, match="DBMTL compares whole rows, of which each of several ranks has a part only"):
        train({"rule": lambda: DBMTL(3), "how": "whole"}, [rank], distributed)
    mesh = init_device_mesh("cpu", (2,))
    part = distribute_tensor(torch.randn(4, 2), mesh, [Shard(0)]).requires_grad_()
    with pytest.raises(RuntimeError, match="Balance needs whole features, not DTensors that are sharded"):
        mtl.Balance(MGDA(), TASKS)(part)
    two_layers(rank)
    found["static graph"] = encoded([rank], partial(DistributedDataParallel, static_graph=True))
    return found


@pytest.fixture(scope="module")
def two_ranks():
    return run_ranks(2, train_all)


@pytest.mark.parametrize(("how", "name"), RUNS)
def test_two_ranks_equal_one_process_on_the_whole_batch(two_ranks, how, name):
    expected, weights = train(CASES[name], [0, 1])
    for rank in two_ranks:
        found, seen = rank[how, name]
        for parameter, value in expected.items():
            assert torch.allclose(found[parameter], value, rtol=1e-12, atol=1e-13), parameter
        for one, two in zip(weights, seen, strict=True):
            assert one == pytest.approx(two, rel=1e-9)


def test_a_model_that_ends_in_the_layer_is_averaged_in_a_static_graph(two_ranks):
    for rank in two_ranks:
        for found, expected in zip(rank["static graph"], encoded([0, 1]), strict=True):
            assert torch.allclose(found, expected, rtol=1e-12)


def test_the_cases_differ():
    """The control: training by each rule, or without the absences, leaves other parameters."""
    whole = {name: train(case, [0, 1])[0]["trunk.0.weight"] for name, case in CASES.items()}
    assert not torch.allclose(whole["NashMTL, whole"], whole["Sum, whole"], rtol=1e-3)
    assert not torch.allclose(whole["NashMTL, whole"], whole["NashMTL, absent"], rtol=1e-3)
    assert not torch.allclose(whole["every second"], whole["NashMTL, absent"], rtol=1e-3)


# ------------------------------------------------------------------------------------------ a rank that does not come


def one_rank_stays_away(absent, leaves):
    bounded.TIMEOUT, bounded.GRACE = timedelta(seconds=3), 3.0
    layer, z = mtl.Balance(MGDA(), ["a", "b"]), torch.randn(3, 2, requires_grad=True)

    def step():
        split = layer(z)
        (split["a"].sum() + split["b"].square().sum()).backward()

    step()
    if dist.get_rank() == absent:
        time.sleep(0 if leaves else 9)
        return None
    start = time.monotonic()
    with pytest.raises(RuntimeError) as caught:
        step()
    return str(caught.value), time.monotonic() - start


@pytest.mark.parametrize(("absent", "leaves"), [(1, False), (2, True)])
def test_a_backward_that_reaches_only_some_ranks_ends_and_names_the_others(absent, leaves):
    answers = run_ranks(3, partial(one_rank_stays_away, absent, leaves))
    waited = [answer for rank, answer in enumerate(answers) if rank != absent]
    for message, seconds in waited:
        assert message.startswith(f"Balance(tasks=['a', 'b']) was not reached on rank {absent} within 3 seconds:")
        assert seconds < 9
