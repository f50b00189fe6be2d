"""Which tasks have labels in a batch, and how many."""

import torch
from torch import nn

from mtl.tasks import Task, batch_size, count_labels, label_counts, learnable_tasks, loss_modules, present_tasks

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


def test_labels_are_counted_as_a_mean_counts_them():
    classes, numbers = Task("a", nn.CrossEntropyLoss(ignore_index=255)), Task("b", nn.MSELoss())
    assert count_labels(classes, torch.tensor([[1, 255], [2, 3]])) == 3
    assert count_labels(numbers, torch.tensor([[1.0, float("nan")]])) == 1
    assert count_labels(Task("c", nn.BCELoss()), torch.zeros(2, 3, dtype=torch.int64)) == 6
    assert count_labels(numbers, ["anything", "else"]) == 2
    weighted = Task("d", nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 4.0]), ignore_index=255))
    assert count_labels(weighted, torch.tensor([[1, 255], [2, 2]])) == 10


def test_losses_that_hold_state_are_found_and_moved():
    weighted = Task("a", nn.CrossEntropyLoss(weight=torch.ones(3)))
    weighted.to(torch.device("meta"))
    assert weighted.loss.weight.device.type == "meta"
    assert list(loss_modules([weighted, Task("b", lambda p, t: p.sum())])) == ["a"]


def test_a_task_without_a_label_counts_zero():
    targets = {"map": torch.full((2, 2), 255), "number": torch.tensor([1.0, float("nan")])}
    assert label_counts(TASKS, targets) == [0, 0, 1]


def test_a_loss_whose_labels_all_have_the_weight_0_is_no_number_and_is_not_learnt_from():
    weighted = Task("a", nn.CrossEntropyLoss(weight=torch.tensor([0.0, 2.0])))
    for target, learnt in (([0, 0], []), ([0, -100], []), ([-100, -100], []), ([0, 1], [weighted])):
        targets = {"a": torch.tensor(target)}
        assert learnable_tasks([weighted], targets) == learnt
        assert weighted.loss(torch.randn(2, 2), targets["a"]).isnan() == (not learnt)  # torch's own
    assert present_tasks([weighted], {"a": torch.tensor([0, 0])}) == [weighted]  # its metrics have labels


def test_a_batch_in_parts_has_as_many_samples_as_each_and_a_list_one_an_item():
    a, b = torch.zeros(7, 3), torch.zeros(7)
    assert [batch_size(value) for value in (a, [a, b], (a, (b,)), {"x": a, "y": b})] == [7, 7, 7, 7]
    assert batch_size([torch.zeros(1), torch.zeros(2), torch.zeros(3)]) == batch_size(["a", "b", "c"]) == 3
    assert count_labels(Task("a", nn.MSELoss()), [a, b]) == 7
