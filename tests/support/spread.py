"""A few steps of architectures whose parts wait for other ranks, draw numbers, or are frozen, and of members."""

import torch
from support.missing import TASKS, batches, parameters
from support.parity import here, strategy_of
from torch import nn

from mtl.architectures import LTB, MTAN, NDDR, CrossStitch, FiLM, Hard, LoRA
from mtl.architectures.read import Read
from mtl.distributed.collectives import is_distributed
from mtl.distributed.data_parallel import all_parameters_used, data_parallel
from mtl.distributed.sharding import shard
from mtl.distributed.sync_batchnorm import synchronised
from mtl.engine.engine import Engine
from mtl.members import add_members
from mtl.model import MultiTaskModel
from mtl.strategies import ParetoManifold
from mtl.tasks import Task
from mtl.weightings import Equal

STEPS = 3


def maps():
    first = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh())
    return nn.Sequential(first, nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.Tanh()))


def vectors():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())


class MapHead(nn.Linear):
    def forward(self, z):
        return super().forward(z.mean((2, 3)))


# By name: the architecture, its backbone, the strategy and its space.
CASES = {
    "mtan": (MTAN, maps, "MGDA", "features"),
    "mtan, naive": (MTAN, maps, "naive", None),
    "mtan, parameters": (MTAN, maps, "MGDA", "parameters"),
    "cross-stitch": (CrossStitch, vectors, "MGDA", "features"),
    "cross-stitch, maps": (CrossStitch, maps, "detached", None),
    "nddr": (NDDR, vectors, "MGDA", "features"),
    "film": (FiLM, vectors, "MGDA", "parameters"),
    "film, maps": (FiLM, maps, "detached", None),
    "ltb": (LTB, vectors, "MGDA", "features"),
    "ltb, parameters": (LTB, vectors, "MGDA", "parameters"),
    "lora": (LoRA, vectors, "MGDA", "features"),
    "lora, parameters": (LoRA, vectors, "MGDA", "parameters"),
    "members": (Hard, vectors, "pareto manifold", None),
}
OPTIONS = {LTB: {"warm_up": 0.4, "seed": 1}, LoRA: {"shared_rank": 3, "task_rank": 2, "dropout": 0.0}}


def left_by(kind, backbone, strategy, space, seed=1):
    """What the steps leave, the first of which is in LTB's warm-up, and the last without labels of ``a`` on a rank."""
    torch.manual_seed(0)
    built = kind(backbone, TASKS, **OPTIONS.get(kind, {}) | ({"seed": seed} if kind is LTB else {}))
    head = (lambda: MapHead(8, 3)) if backbone is maps else (lambda: nn.Linear(8, 3))
    readers = {task: built.reader(task) for task in TASKS}
    heads = {task: head() if own is None else Read(own, head()) for task, own in readers.items()}
    model = MultiTaskModel(built.trunk, heads).double()
    example = next(batches(1))[0]
    model.eval()(example)  # what is lazy finds its shape
    chosen = None
    if strategy == "pareto manifold":
        add_members(model)
        chosen = ParetoManifold(Equal(), TASKS, seed, preferences=2)
    with torch.no_grad():
        for parameter in model.train().parameters():
            parameter.copy_(0.4 * torch.randn_like(parameter))
    engine = Engine(model, [Task(task, nn.CrossEntropyLoss()) for task in TASKS])
    if is_distributed():
        device = torch.device("cpu")
        model.backbone, model.heads = synchronised(model.backbone, device), synchronised(model.heads, device)
        engine.wrapped = data_parallel(model.backbone, device, all_parameters_used(model.backbone, example))
    chosen = chosen or strategy_of(strategy, TASKS, **({} if space is None else {"space": space}))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for number, (inputs, targets) in enumerate(batches(STEPS), 1):
        for module in (module for module in model.modules() if hasattr(module, "at")):
            module.at(number, STEPS)
        optimizer.zero_grad()
        chosen.run(engine, here(inputs), {task: here(target) for task, target in targets.items()})
        optimizer.step()
    return parameters(model)


def alphas():
    """What cross-stitch networks say of α, which differ, and of which each rank has a part where they are spread."""
    torch.manual_seed(0)
    built = CrossStitch(vectors, TASKS)
    built.trunk(next(batches(1))[0].float())
    with torch.no_grad():
        for unit in built.trunk.units[0].values():
            unit.alpha.uniform_()
    if is_distributed():
        shard(built.trunk)
    return {name: value.item() for name, value in built.trunk.logged().items()}


def run_all():
    """The result of every case, by name."""
    return {name: left_by(*case) for name, case in CASES.items()} | {"alphas": alphas()}
