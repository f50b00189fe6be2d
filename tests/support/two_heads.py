"""A trunk and two heads in plain PyTorch, with mtl.Balance between them, and rules that tell what they were asked."""

import torch
from torch import nn

import mtl
from mtl.rules import MGDA, Sum
from mtl.strategies import Balanced
from mtl.weightings import Equal


def strategy(rule, tasks, **options):
    return Balanced(Equal(), rule, [task.name for task in tasks], **options)


class Seen(Sum):
    """Remembers the matrices that it was asked about."""

    def __init__(self):
        super().__init__()
        self.grams = []

    def forward(self, gram, losses=None):
        self.grams.append(gram)
        return super().forward(gram)


class ByLosses(nn.Module):
    def forward(self, gram, losses):
        return losses.double() / losses.double().sum()


class Two(nn.Module):
    """A trunk and two heads in plain PyTorch, as a stranger has it."""

    def __init__(self, layer=None):
        super().__init__()
        self.trunk, self.a, self.b = nn.Sequential(nn.Linear(4, 5), nn.Tanh()), nn.Linear(5, 2), nn.Linear(5, 3)
        self.balance = layer

    def forward(self, x):
        z = self.trunk(x)
        z = {"a": z, "b": z} if self.balance is None else self.balance(z)
        return {"a": self.a(z["a"]), "b": self.b(z["b"])}


def two(rule=None, seed=0, **options):
    torch.manual_seed(seed)
    model = Two().double()
    model.balance = mtl.Balance(MGDA() if rule is None else rule, ["a", "b"], **options)
    return model, torch.randn(7, 4, dtype=torch.float64)


def two_losses(out):
    return {"a": out["a"].square().mean(), "b": (out["b"] - 1).abs().mean()}


def trained(model, x, steps=2, rate=0.1):
    """The parameters after some steps of gradient descent."""
    for _ in range(steps):
        model.zero_grad()
        sum(two_losses(model(x)).values()).backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= rate * p.grad
    return {name: p.detach().clone() for name, p in model.named_parameters()}
