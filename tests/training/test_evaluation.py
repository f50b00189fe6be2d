import torch
from torch import nn

from mtl.engine.engine import Engine
from mtl.model import MultiTaskModel
from mtl.tasks import Task
from mtl.training.evaluation import evaluate


def test_an_evaluation_weighs_batches_by_their_size_and_leaves_absent_tasks_out():
    model = MultiTaskModel(nn.Identity(), {"a": nn.Identity(), "b": nn.Identity(), "never": nn.Identity()})
    tasks = [Task(name, nn.MSELoss()) for name in model.heads]
    batches = [
        (torch.zeros(3), {"a": torch.ones(3), "b": torch.ones(3) * 2}),
        (torch.zeros(1), {"a": torch.ones(1) * 3, "never": torch.full((1,), float("nan"))}),
    ]
    model.train()
    results = evaluate(Engine(model, tasks), batches, torch.device("cpu"))
    assert results == {"loss/a": (3 * 1 + 9) / 4, "loss/b": 4.0, "loss/total": 7.0}
    assert model.training
