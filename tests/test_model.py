import pytest
import torch
from torch import nn

from mtl.model import MultiTaskModel


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
