"""MTAN against its equations, written level by level as the authors' code runs them."""

import pytest
import torch
from support.by_formula import STRATEGIES, TASKS, assemble, assert_exact, normalised, trained_by
from torch import nn
from torch.nn.functional import conv2d, max_pool2d

from mtl.architectures import MTAN
from mtl.architectures.read import Read
from mtl.backbones import Timm
from mtl.model import MultiTaskModel
from mtl.strategies import Detached, Naive
from mtl.system.memory import PeakMemory
from mtl.tasks import Task
from mtl.weightings import Equal


def backbone():
    """Three stages: u before the last block; no u, for there is one block; no u of p's resolution."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(),
        nn.Sequential(nn.Conv2d(4, 6, 3, 2, padding=1), nn.Tanh()),
        nn.Conv2d(6, 8, 3, padding=1), nn.AvgPool2d(2),
    )  # fmt: skip


class Head(nn.Linear):
    def forward(self, z):
        return super().forward(z.mean((2, 3)))


def make(**arguments):
    torch.manual_seed(0)
    inputs = torch.randn(5, 2, 8, 8, dtype=torch.float64)
    return assemble(MTAN(backbone, TASKS, **arguments), lambda: Head(8, 3), inputs)


def mask(layers, x):
    g, bn_g, _, h, bn_h, _ = layers
    hidden = normalised(torch.einsum("oc,bchw->bohw", g.weight[:, :, 0, 0], x), bn_g).clamp(min=0)
    return 1 / (1 + torch.exp(-normalised(torch.einsum("oc,bchw->bohw", h.weight[:, :, 0, 0], hidden), bn_h)))


def refined(layers, x):
    conv, bn, _ = layers
    return normalised(conv2d(x, conv.weight, padding=1), bn).clamp(min=0)


def predict(model, inputs):
    """Level by level, all tasks on each."""
    (first, second, third), readers = model.backbone.units, {task: model.heads[task].reader for task in TASKS}
    u1 = first[0](inputs)
    p1 = torch.tanh(u1)
    p2 = second(p1)
    p3 = third(p2)
    x = {t: mask(r.masks[0].module, u1) * p1 for t, r in readers.items()}
    f = {t: max_pool2d(refined(r.refine[0].module, x[t]), 2) for t, r in readers.items()}
    x = {t: mask(r.masks[1].module, torch.cat([p2, f[t]], 1)) * p2 for t, r in readers.items()}
    f = {t: max_pool2d(refined(r.refine[1].module, x[t]), 2) for t, r in readers.items()}
    x = {t: mask(r.masks[2].module, torch.cat([p3, f[t]], 1)) * p3 for t, r in readers.items()}
    return {t: model.heads[t].head(z) for t, z in x.items()}


@pytest.mark.parametrize("share_refine", [True, False])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_gradients_are_those_of_the_equations(strategy, share_refine):
    assert_exact(strategy, make(share_refine=share_refine), predict)


@pytest.mark.parametrize("share_refine", [True, False])
def test_predictions_are_those_of_the_equations(share_refine):
    model, _, inputs, _ = make(share_refine=share_refine)
    by_formula = predict(model, inputs)
    for task, prediction in model(inputs).items():
        torch.testing.assert_close(prediction, by_formula[task], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("share_refine", [True, False])
def test_masks_are_private_and_what_is_shared_all_train(share_refine):
    for name, tasks in trained_by(make(share_refine=share_refine, reduction=1)).items():
        shared = name.startswith("backbone") or (share_refine and ".refine." in name)
        assert tasks == (list(TASKS) if shared else [name.split(".")[1]]), name


def test_one_trunk_backward():
    model, tasks, inputs, targets = make()
    calls = []
    model.backbone.units[0][0].weight.register_hook(lambda gradient: calls.append(1))
    for number, strategy in enumerate(("naive", "detached", "mgda"), 1):
        STRATEGIES[strategy]().step(model, tasks, inputs, targets)
        assert len(calls) == number


def test_statistics_of_a_shared_refinement_move_once_a_task():
    model, tasks, inputs, targets = make()
    norm = model.heads["a"].reader.refine[0].module[1]
    before = norm.num_batches_tracked.item()
    STRATEGIES["detached"]().step(model, tasks, inputs, targets)
    assert norm.num_batches_tracked.item() == before + len(TASKS)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "swin_tiny_patch4_window7_224"])
@pytest.mark.parametrize("features", ["pooled", "tokens", "pyramid"])
def test_readers_return_what_the_backbone_would(name, features):
    def fresh():
        return Timm(name, features=features, image_size=64)

    built, inputs = MTAN(fresh, ["a"]), torch.randn(2, 3, 64, 64)
    own, plain = built.reader("a")(built.trunk(inputs)), fresh()(inputs)
    shapes = [[z.shape for z in found] if features == "pyramid" else found.shape for found in (own, plain)]
    assert shapes[0] == shapes[1]


def test_masks_of_one_change_nothing():
    """A mask near one gives the backbone's own features."""
    torch.manual_seed(0)
    built, inputs = MTAN(backbone, ["a"]), torch.randn(4, 2, 8, 8)
    reader = built.reader("a")
    reader(built.trunk(inputs))
    for layer in reader.masks:
        layer.module[4].bias.data.fill_(40.0)
    units = built.trunk.units
    assert torch.equal(reader(built.trunk(inputs)), units[2](units[1](units[0](inputs))))


def test_what_has_no_maps_is_refused():
    with pytest.raises(ValueError, match=r"MTAN attends to maps \[B, C, H, W\], and stage 1 of the backbone gives"):
        MTAN(lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU()), TASKS).trunk(torch.randn(2, 3))
    with pytest.raises(ValueError, match="the stages of Linear are not known"):
        MTAN(lambda: nn.Linear(3, 4), TASKS)
    with pytest.raises(ValueError, match="reduction=0 must be 1 or more"):
        MTAN(backbone, TASKS, reduction=0)


def peak(strategy, count):
    """Bytes of a step above the parameters and their gradients."""
    torch.manual_seed(0)
    tasks = [Task(f"task{i}", nn.MSELoss()) for i in range(count)]
    built = MTAN(lambda: Timm("test_resnet", image_size=32), [task.name for task in tasks])
    model = MultiTaskModel(built.trunk, {t.name: Read(built.reader(t.name), nn.Linear(96, 1)) for t in tasks})
    inputs, targets = torch.randn(8, 3, 32, 32), {task.name: torch.randn(8, 1) for task in tasks}
    for _ in range(2):  # in the second, all gradients are there
        with PeakMemory() as memory:
            strategy(Equal()).step(model, tasks, inputs, targets)
    return memory.peak


def test_the_masks_of_one_task_are_alive_at_a_time():
    assert peak(Detached, 8) <= 1.25 * peak(Detached, 2)
    assert peak(Naive, 8) > 1.5 * peak(Naive, 2)  # the control
