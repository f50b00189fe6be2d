"""The same few steps in one process and on shards of the batches in several: what both leave is compared."""

import copy
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn

from mtl import rules, weightings
from mtl.architectures.rotograd import Rotation
from mtl.distributed import sharding
from mtl.distributed.collectives import get_rank, get_world_size, is_distributed
from mtl.distributed.data_parallel import all_parameters_used, data_parallel
from mtl.distributed.sharding import full_tensor, is_sharded
from mtl.distributed.sync_batchnorm import synchronised
from mtl.engine.engine import Engine
from mtl.engine.weighting import observe_after_update
from mtl.losses import MaskedL2
from mtl.model import MultiTaskModel
from mtl.strategies import Balanced, Detached, Naive, RotoGrad
from mtl.tasks import Task, loss_modules
from mtl.training.nonfinite import GradientNorm
from mtl.training.step_metrics import Outcome, StepValues, affinity_metrics

TASKS = "abcdefgh"
BATCH, STEPS = 7, 3  # no number of ranks divides the batch


class Pyramid(nn.Module):
    """Two maps of different sizes, the second one read by no head."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, 2, 1), nn.Conv2d(4, 6, 3, 2, 1)

    def forward(self, x):
        first = self.first(x).tanh()
        return [first, self.second(first).tanh()]


class PyramidHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, z):
        return self.linear(z[0].mean((2, 3)))


class Rotated(nn.Sequential):
    """A head behind a rotation that is not the identity."""

    def __init__(self):
        super().__init__(Rotation(), nn.Linear(8, 3))
        self(torch.zeros(1, 8))
        nn.init.normal_(self[0].skew, std=0.3)


HEADS = {
    "rotated": Rotated,
    "pyramid": PyramidHead,
    "deep": lambda: nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3)),
}


def trunk(kind):
    if kind == "pyramid":
        return Pyramid()
    norm = nn.BatchNorm2d(4) if kind == "batchnorm" else nn.GroupNorm(2, 4)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), norm, nn.ReLU(), nn.Flatten(), nn.Linear(256, 8), nn.Tanh())


WEIGHTINGS = {
    "equal": lambda tasks: weightings.Equal(),
    "uw": weightings.UW,
    "log": lambda tasks: weightings.Log(),
    "famo": weightings.FAMO,
    "gradnorm": weightings.GradNorm,
    "dwa": lambda tasks: weightings.DWA(tasks, steps_per_epoch=1),
    "random": weightings.Random,
    "gls": lambda tasks: weightings.GLS(),
    "imtl_l": weightings.IMTLL,
    "stch": lambda tasks: weightings.STCH(tasks, steps_per_epoch=1),
    "go4align": weightings.GO4Align,
    "uw_so": lambda tasks: weightings.UWSO(),
    "tchebycheff": weightings.Tchebycheff,
    "pbi": weightings.PBI,
    "cosmos": weightings.COSMOS,
}
RULES = {
    name: value
    for name, value in vars(rules).items()
    if isinstance(value, type) and issubclass(value, rules.Rule) and value is not rules.Rule
}


def make_rule(name, count):
    try:
        return RULES[name]()
    except TypeError:
        return RULES[name](num_tasks=count)


def strategy_of(name, tasks, weighting="equal", **options):
    weighting = WEIGHTINGS[weighting](tasks)
    if name in ("naive", "detached"):
        return {"naive": Naive, "detached": Detached}[name](weighting, **options)
    if name == "rotograd":
        return RotoGrad(weighting, rules.RotoGradScale(len(tasks)), tasks, **options)
    return Balanced(weighting, make_rule(name, len(tasks)), tasks, **options)


@contextmanager
def counted():
    """The sums over the ranks inside, DDP's buckets and all: the number of elements in each."""
    sizes, before = [], dist.all_reduce

    def count(tensor, *arguments, **options):
        sizes.append(tensor.numel())
        return before(tensor, *arguments, **options)

    dist.all_reduce = count
    try:
        yield sizes
    finally:
        dist.all_reduce = before


def batches(absent, dtype, names, kind):
    """Batches of every task; some labels are missing, of ``b`` all in the first half of the first batch."""
    generator = torch.Generator().manual_seed(5)
    for number in range(STEPS):
        inputs = torch.randn(BATCH, 1, 8, 8, generator=generator, dtype=dtype)
        targets = {
            name: torch.randn(BATCH, 1, generator=generator, dtype=dtype)
            if kind == "equal"
            else torch.randn(BATCH, 3, generator=generator, dtype=dtype)
            if name in "bdf"
            else torch.randint(3, (BATCH,), generator=generator)
            for name in names
        }
        if absent:
            missing = torch.nan if kind == "equal" else -100
            targets["a"][::3] = missing
            if number == 0:
                targets["a"][: BATCH // 2] = missing  # none on the first of two ranks
            if number == 1:
                del targets["b"]
        yield inputs, targets


def here(value):
    """This rank's part of a batch."""
    size, rank, count = len(value), get_rank(), get_world_size()
    return value[size * rank // count : size * (rank + 1) // count]


def train(
    strategy, kind="pooled", dtype=torch.float64, absent=False, frozen=False, chunks=1, weighting="equal",
    audit=False, sync=False, max_norm=None, count=3, shard=None, share=(), **options,
):  # fmt: skip
    """Parameters, Gram matrices, losses, weights and collectives of a few steps of the ``count`` first tasks."""
    torch.manual_seed(0)
    outputs = 1 if kind == "equal" else 3  # heads and losses that are all the same run as one
    heads = {task: HEADS.get(kind, lambda: nn.Linear(8, outputs))() for task in TASKS[:count]}
    model = MultiTaskModel(trunk(kind), heads, share).to(dtype)
    common = {p for name in share for head in heads.values() for p in head.get_submodule(name).parameters()}
    tasks = [Task(task, nn.MSELoss() if task in "bdf" else nn.CrossEntropyLoss()) for task in heads]
    if kind == "equal":
        tasks = [Task(task, MaskedL2(invalid=None)) for task in heads]
    if frozen:
        for parameter in list(model.backbone.parameters())[:2]:
            parameter.requires_grad_(False)
    if kind == "batchnorm" and is_distributed() and sync:
        model.backbone = synchronised(model.backbone, torch.device("cpu"))
    engine, chosen = Engine(model, tasks), strategy_of(strategy, list(heads), weighting, **options)
    if is_distributed() and shard is None:
        used = all_parameters_used(model.backbone, torch.zeros(2, 1, 8, 8, dtype=dtype))
        engine.wrapped = data_parallel(model.backbone, torch.device("cpu"), used)
    if is_distributed() and shard is not None:
        sharding.shard(model.backbone, *(model.heads.values() if shard == "all" else ()))
        assert all(is_sharded(p) != (shard == "backbone" or p in common) for p in model.heads.parameters())
    learned = [*model.parameters(), *chosen.parameters(), *loss_modules(tasks).parameters()]
    optimizer = torch.optim.SGD([p for p in learned if p.requires_grad], lr=0.1, momentum=0.9)
    seen = []
    collectives = []
    for inputs, targets in batches(absent, dtype, list(heads), kind):
        optimizer.zero_grad()
        inputs, targets = here(inputs), {task: here(target) for task, target in targets.items()}
        with counted() as sizes:
            result = chosen.run(engine, inputs, targets, measure=True, audit=audit)
        collectives.append(sizes)
        if max_norm is not None:
            norm = GradientNorm(learned)
            norm.clip(max_norm, norm.total())
        optimizer.step()
        if chosen.weighting.needs_losses_after_update:
            observe_after_update(engine, chosen.weighting, inputs, targets)
        seen.append(result)
    return {
        "parameters": torch.cat([full_tensor(p.detach()).flatten() for p in learned]),
        "collectives": collectives,
        "sizes": [sum(p.numel() for p in module.parameters()) for module in (model.backbone, model.heads)],
        "gram": [result.gram for result in seen],
        "losses": [{n: v.item() for n, v in result.losses.items()} for result in seen],
        "weights": [{n: v.item() for n, v in result.weights.items()} for result in seen],
        "affinity": [
            affinity_metrics(Outcome(result, True, StepValues({}, {}, 0.0), {"heads": 0.1})) for result in seen
        ],
        "audit": [result.audit.parameters for result in seen if result.audit is not None],
        "buffers": [copy.deepcopy(buffer) for buffer in model.buffers()],
    }


def train_all(cases):
    """Every case in turn."""
    return [train(**case) for case in cases]
