import torch
from torch import nn

from mtl.model import MultiTaskModel, Task, loss_modules, present_tasks

TASKS = [
    Task("classes", nn.CrossEntropyLoss()),
    Task("map", nn.CrossEntropyLoss(ignore_index=255)),
    Task("number", nn.MSELoss()),
]


def names(targets):
    return [task.name for task in present_tasks(TASKS, targets)]


def test_a_task_is_absent_without_a_key_or_with_nothing_but_its_ignore_value_or_nan():
    full = {
        "classes": torch.tensor([0, 1]),
        "map": torch.tensor([255, 3]),
        "number": torch.tensor([1.0, float("nan")]),
    }
    assert names(full) == ["classes", "map", "number"]
    assert names({"number": full["number"]}) == ["number"]
    assert names(full | {"map": torch.tensor([255, 255])}) == ["classes", "number"]
    assert names(full | {"number": torch.full((2,), float("nan"))}) == ["classes", "map"]
    assert names(full | {"classes": torch.tensor([-100, -100])}) == ["map", "number"]  # torch's own default
    assert names({}) == []


def test_a_target_that_is_no_tensor_is_the_losss_own_business():
    assert names({"number": ["anything"]}) == ["number"]


def test_shared_and_head_parameters_are_apart():
    shared = nn.Linear(2, 2)
    model = MultiTaskModel(nn.Linear(3, 2), {"a": shared, "b": shared})
    assert [p.shape for p in model.shared_parameters()] == [(2, 3), (2,)]
    assert [id(p) for p in model.head_parameters()] == [id(p) for p in shared.parameters()]
    assert model(torch.ones(1, 3)).keys() == {"a", "b"}


def test_losses_that_hold_state_are_found_and_moved():
    weighted = Task("a", nn.CrossEntropyLoss(weight=torch.ones(3)))
    weighted.to(torch.device("meta"))
    assert weighted.loss.weight.device.type == "meta"
    assert list(loss_modules([weighted, Task("b", lambda p, t: p.sum())])) == ["a"]
