import pytest
import torch
from torch import nn

from mtl.model import MultiTaskModel
from mtl.tasks import Task, count_labels, loss_modules, present_tasks

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


def small_heads(outputs=3):
    return {name: nn.Sequential(nn.Linear(2, 4), nn.Linear(4, outputs)) for name in ("a", "b", "c")}


def test_heads_share_what_is_named_and_nothing_else():
    model = MultiTaskModel(nn.Linear(3, 2), small_heads(), ["1"])
    a, b, c = model.heads.values()
    assert a[1] is b[1] is c[1] and len({id(head[0]) for head in (a, b, c)}) == 3
    names = [name for name, _ in model.named_parameters() if name.startswith("heads")]
    assert names == [f"heads.{n}.{p}" for n in ("a.0", "a.1", "b.0", "c.0") for p in ("weight", "bias")]
    assert len(list(model.head_parameters())) == 8


def test_a_shared_layer_stays_shared_through_a_state():
    torch.manual_seed(0)
    saved, model = (
        MultiTaskModel(nn.Linear(3, 2), small_heads(), ["1"]),
        MultiTaskModel(nn.Linear(3, 2), small_heads(), ["1"]),
    )
    model.load_state_dict(saved.state_dict())
    assert model.heads["a"][1] is model.heads["c"][1]
    assert torch.equal(model.heads["b"][1].weight, saved.heads["c"][1].weight)


@pytest.mark.parametrize(
    ("heads", "share", "message"),
    [
        (small_heads(), ["2"], r"share=2: the head of a has only 0, 1\."),
        ({"a": nn.Linear(2, 2)}, ["x"], "share=x: the head of a has only no submodules"),
        (small_heads() | {"b": nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 5))}, ["1"],
         "share=1: it is a Linear of 15 numbers in a, but a Linear of 25 numbers in b"),
    ],
)  # fmt: skip
def test_what_cannot_be_shared_is_named(heads, share, message):
    with pytest.raises(ValueError, match=message):
        MultiTaskModel(nn.Linear(3, 2), heads, share)


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
