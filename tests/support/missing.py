"""A few steps of tasks whose labels are missing on one rank, or in one of a step's batches."""

from types import SimpleNamespace

import torch
from support.parity import here, strategy_of, trunk
from torch import nn

from mtl.architectures import DSelectK
from mtl.architectures.read import Read
from mtl.distributed.collectives import get_rank, is_distributed
from mtl.distributed.data_parallel import data_parallel
from mtl.distributed.sharding import full_tensor, shard
from mtl.distributed.sync_batchnorm import synchronised
from mtl.engine.accumulation import accumulate
from mtl.engine.engine import Engine
from mtl.engine.weighting import observe_after_update
from mtl.model import MultiTaskModel
from mtl.tasks import Task
from mtl.training.evaluation import evaluate

TASKS = ["a", "b"]


def batches(count):
    """The last one has no label of ``a`` in its first half."""
    generator = torch.Generator().manual_seed(1)
    for number in range(count):
        inputs = torch.randn(6, 1, 8, 8, generator=generator, dtype=torch.float64)
        targets = {task: torch.randint(3, (6,), generator=generator) for task in TASKS}
        if number == count - 1:
            targets["a"][:3] = -100
        yield inputs, targets


def engine_of(sharded, losses, dtype=torch.float64):
    torch.manual_seed(0)
    model = MultiTaskModel(trunk("pooled"), {task: nn.Linear(8, 3) for task in TASKS}).to(dtype)
    engine = Engine(model, [Task(task, loss) for task, loss in losses.items()])
    if is_distributed() and not sharded:
        engine.wrapped = data_parallel(model.backbone, torch.device("cpu"), True)
    for module in (model.backbone, *model.heads.values()) if is_distributed() and sharded else ():
        shard(module)
    return engine


def parameters(model):
    return torch.cat([full_tensor(p.detach()).flatten() for p in model.parameters()])


def evaluated_between(weighting):
    """What is left by steps of a model that is spread, and evaluated, by one rank on more batches, after each."""
    engine = engine_of(True, {task: nn.CrossEntropyLoss() for task in TASKS})
    model, strategy = engine.model, strategy_of("detached", TASKS, weighting)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for inputs, targets in batches(3):
        own = here(inputs), {task: here(target) for task, target in targets.items()}
        optimizer.zero_grad()
        strategy.run(engine, *own)
        optimizer.step()
        if strategy.weighting.needs_losses_after_update:
            observe_after_update(engine, strategy.weighting, *own)
        evaluate(engine, [own] * (2 - get_rank()), torch.device("cpu"))
    return parameters(model)


def accumulated(strategy, tasks_of_last, sharded=False, weighting="equal", **options):
    """What is left by a step of two batches, the last of which has labels of some tasks only, or of none."""
    engine = engine_of(sharded, {task: nn.CrossEntropyLoss() for task in TASKS})
    model, chosen = engine.model, strategy_of(strategy, TASKS, weighting, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    own = [(here(x), {task: here(target) for task, target in targets.items()}) for x, targets in batches(2)]
    own[1] = own[1][0], {task: target for task, target in own[1][1].items() if task in tasks_of_last}
    state = SimpleNamespace(engine=engine, tasks=engine.tasks, strategy=chosen, optimizer=optimizer)
    accumulate(state, own[0], lambda: own[1], 2, measure=False, audit=False)
    optimizer.step()
    return parameters(model)


def real_numbers(strategy):
    """What is left where one rank has no label at all, and the targets are finer than the model."""
    engine = engine_of(False, {task: nn.L1Loss() for task in TASKS}, dtype=torch.float32)
    model, chosen = engine.model, strategy_of(strategy, TASKS)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    (inputs, _) = next(batches(1))
    target = torch.linspace(-1, 1, 18, dtype=torch.float64).view(6, 3)
    if is_distributed():  # a loss without labels is no number where there is one process
        target[:3] = torch.nan
        own = here(inputs.float()), dict.fromkeys(TASKS, here(target))
    else:
        own = inputs[3:].float(), dict.fromkeys(TASKS, target[3:])
    chosen.run(engine, *own)
    optimizer.step()
    return parameters(model).double()


def synchronised_heads(strategy, weighting="equal"):
    """What is left by steps of heads whose statistics are the whole batch's, without labels too."""
    torch.manual_seed(0)
    heads = {task: nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)) for task in TASKS}
    model, chosen = MultiTaskModel(trunk("pooled"), heads).double(), strategy_of(strategy, TASKS, weighting)
    engine = Engine(model, [Task(task, nn.CrossEntropyLoss()) for task in TASKS])
    if is_distributed():
        model.heads = synchronised(model.heads, torch.device("cpu"))
        engine.wrapped = data_parallel(model.backbone, torch.device("cpu"), True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        (inputs, targets) = next(batches(1))
        own = here(inputs), {task: here(target) for task, target in targets.items()}
        optimizer.zero_grad()
        chosen.run(engine, *own, measure=True)
        optimizer.step()
        if chosen.weighting.needs_losses_after_update:
            observe_after_update(engine, chosen.weighting, *own)
    return parameters(model)


def penalised(strategy, entropy=0.5, **options):
    """What is left by a step of selectors with a penalty, where one rank has no label of ``a``."""
    torch.manual_seed(0)
    built = DSelectK(lambda: trunk("pooled"), TASKS, gamma=3.0, entropy=entropy)
    heads = {task: Read(built.reader(task), nn.Linear(8, 3)) for task in TASKS}
    model, chosen = MultiTaskModel(built.trunk, heads).double(), strategy_of(strategy, TASKS, **options)
    inputs, targets = next(batches(1))
    model(inputs)  # lazy selectors find their width
    with torch.no_grad():
        for parameter in model.heads.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    engine = Engine(model, [Task(task, nn.CrossEntropyLoss()) for task in TASKS])
    if is_distributed():
        engine.wrapped = data_parallel(model.backbone, torch.device("cpu"), True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    chosen.run(engine, here(inputs), {task: here(target) for task, target in targets.items()})
    optimizer.step()
    return parameters(model)


def weighted_classes():
    """What is left by a step of losses that are means over classes which do not count the same."""
    weights = torch.tensor([1.0, 5.0, 20.0], dtype=torch.float64)
    engine = engine_of(False, {task: nn.CrossEntropyLoss(weight=weights) for task in TASKS})
    model, chosen = engine.model, strategy_of("detached", TASKS)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inputs, targets = next(batches(1))
    targets["a"] = torch.tensor([0, 2, -100, -100, 1, 2])
    chosen.run(engine, here(inputs), {task: here(target) for task, target in targets.items()})
    optimizer.step()
    return parameters(model)


def without_labels(strategy):
    """What three steps leave of which the second batch has no label of any task on any rank."""
    engine = engine_of(False, {task: nn.CrossEntropyLoss() for task in TASKS})
    chosen = strategy_of(strategy, TASKS)
    optimizer = torch.optim.AdamW(engine.model.parameters(), lr=0.1)
    for number, (inputs, targets) in enumerate(batches(3)):
        optimizer.zero_grad()
        own = {task: here(target) for task, target in targets.items()}
        if number == 1:
            own = {task: torch.full_like(target, -100) for task, target in own.items()}
        chosen.run(engine, here(inputs), own)
        optimizer.step()
    return parameters(engine.model)
