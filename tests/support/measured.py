"""What metrics give, accumulated over batches, and batches of maps for them."""

import math

import torch

NAN = math.nan


def accumulated(named, batches):
    for prediction, target in batches:
        for metric in named.values():
            metric.update(prediction, target)
    return {name: metric.compute().item() for name, metric in named.items()}


def split(prediction, target, sizes=(1, 3, 2)):
    return list(zip(prediction.split(list(sizes)), target.split(list(sizes)), strict=True))


def updated(named, prediction, target, size=7):
    for metric in named.values():
        for p, t in zip(prediction.split(size), target.split(size), strict=True):
            metric.update(p, t)
    return {name: metric.compute().item() for name, metric in named.items()}


def depth_batches():
    torch.manual_seed(1)
    prediction, target = 4 * torch.rand(6, 1, 5, 5), 0.5 + 4 * torch.rand(6, 1, 5, 5)
    target[torch.rand(target.shape) < 0.3] = 0.0
    target[0, 0, 0, 0] = NAN
    return split(prediction, target)


def normal_batches():
    torch.manual_seed(2)
    target = torch.nn.functional.normalize(torch.randn(6, 3, 7, 7), dim=1)
    prediction = 3 * (target + 0.4 * torch.randn(6, 3, 7, 7) * torch.rand(6, 1, 1, 1))
    target[:, :, 3, 4] = 0.0
    target[5, :, 2] = 0.0
    return split(prediction, target)
