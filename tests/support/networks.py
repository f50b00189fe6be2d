"""Small trunks with every kind of features, and tasks for them, in any dtype."""

import torch
from torch import nn

from mtl.engine.engine import Engine
from mtl.model import MultiTaskModel
from mtl.tasks import Task


class Pyramid(nn.Module):
    """Three nested feature maps; no head reads the last one, and one leaf is an integer tensor."""

    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU()) for a, b in ((1, 4), (4, 6), (6, 8))
        )

    def forward(self, x):
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return {"levels": (maps[0], maps[1]), "unread": [maps[2]], "sizes": torch.arange(3)}


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(8, 6)
        self.block = nn.TransformerEncoderLayer(6, 2, 12, dropout=0.1, batch_first=True)

    def forward(self, x):
        return self.block(self.embed(x[:, 0]))


def pooled():
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.2), nn.AvgPool2d(4), nn.Flatten(),
        nn.Linear(24, 10), nn.Tanh(),
    )  # fmt: skip


class PyramidHead(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.linear = nn.Linear(4 + 6, outputs)

    def forward(self, z):
        return self.linear(torch.cat([level.mean((2, 3)) for level in z["levels"]], 1))


class TokenHead(nn.Linear):
    def forward(self, z):
        return super().forward(z.mean(1))


TRUNKS = {"pooled": pooled, "tokens": Tokens, "pyramid": Pyramid}
HEADS = {
    "pooled": lambda: nn.Sequential(nn.Linear(10, 7), nn.BatchNorm1d(7), nn.Dropout(0.1), nn.ReLU(), nn.Linear(7, 3)),
    "tokens": lambda: TokenHead(6, 3),
    "pyramid": lambda: PyramidHead(3),
}


def make(kind, count, dtype=torch.float64, seed=0):
    """A model with ``count`` heads, its tasks (alternately classification and regression), and a batch of 6."""
    torch.manual_seed(seed)
    names = [f"task{i}" for i in range(count)]
    model = MultiTaskModel(TRUNKS[kind](), {name: HEADS[kind]() for name in names}).to(dtype)
    tasks = [Task(name, nn.MSELoss() if i % 2 else nn.CrossEntropyLoss()) for i, name in enumerate(names)]
    inputs = torch.randn(6, 1, 8, 8, dtype=dtype)
    targets = {
        name: torch.randn(6, 3, dtype=dtype) if i % 2 else torch.randint(3, (6,)) for i, name in enumerate(names)
    }
    return model, tasks, inputs, targets


def gradients(strategy, model, tasks, inputs, targets, measure=False, precision=None):
    """Every parameter's gradient (zeros if it has none) after one step from a fixed random state, and the result."""
    model.zero_grad()
    torch.manual_seed(1)
    result = strategy.run(Engine(model, tasks, precision), inputs, targets, measure=measure)
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}, result


def distance(a, b):
    """The relative distance ``norm(a - b) / norm(a)`` over all parameters together."""
    difference = sum((a[n] - b[n]).double().square().sum() for n in a).sqrt()
    return (difference / sum(a[n].double().square().sum() for n in a).sqrt()).item()


class Tiny(nn.Sequential):
    """The smallest trunk for the digits."""

    def __init__(self, image_size):
        super().__init__(nn.Flatten(), nn.Linear(image_size**2, 8), nn.Dropout(0.1), nn.Tanh())


class NoStages(nn.Module):
    """A trunk that does not say which layers it has."""

    def __init__(self, image_size):
        super().__init__()
        self.linear = nn.Linear(image_size**2, 8)

    def forward(self, x):
        return self.linear(x.flatten(1))


class Frozen(Tiny):
    """A trunk that is not trained."""

    def __init__(self, image_size):
        super().__init__(image_size)
        self.requires_grad_(False)


class TwoLayers(nn.Sequential):
    """A trunk of two stages."""

    def __init__(self, image_size):
        first = nn.Flatten(), nn.Linear(image_size**2, 8), nn.Dropout(0.1), nn.Tanh()
        super().__init__(*first, nn.Linear(8, 6), nn.Tanh())


class Deterministic(nn.Sequential):
    """The same without dropout."""

    def __init__(self, image_size):
        super().__init__(nn.Flatten(), nn.Linear(image_size**2, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh())
