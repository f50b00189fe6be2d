"""Mixtures of members: against models whose weights are mixed by hand."""

import copy

import pytest
import torch
from support.networks import Tiny, TokenHead, Tokens
from torch import nn
from torch.func import functional_call

from mtl.config.layer_decay import split_groups
from mtl.members import NOISE, add_members, plain_names, preference_of, without_members
from mtl.model import MultiTaskModel

TRUNKS = {
    "vectors": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.LayerNorm(10), nn.Dropout(0.2), nn.Tanh()),
    "maps": lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten()),
    "tokens": Tokens,
}
HEADS = {"vectors": lambda: nn.Linear(10, 3), "maps": lambda: nn.Linear(4, 3), "tokens": lambda: TokenHead(6, 3)}


def make(kind, seed):
    torch.manual_seed(seed)
    return MultiTaskModel(TRUNKS[kind](), {name: HEADS[kind]() for name in ("a", "b", "c")}).double().eval()


def members(kind="vectors", **options):
    """A model with members, the plain models that they come from, and a batch."""
    plain = [make(kind, seed) for seed in range(3)]
    model = copy.deepcopy(plain[0])
    add_members(model, plain[1:], **options)
    return model.eval(), plain, torch.randn(6, 1, 8, 8).double()


def mixed_by_hand(plain, shares):
    values = [dict(own.named_parameters()) for own in plain]
    return {name: sum(s * own[name] for s, own in zip(shares, values, strict=True)) for name in values[0]}


@pytest.mark.parametrize("kind", TRUNKS)
def test_a_model_at_a_preference_is_the_one_mixed_by_hand(kind):
    model, plain, x = members(kind)
    shares = [0.2, 0.5, 0.3]
    equal = model(x)
    with preference_of(model).held(shares):
        found = model(x)
    expected = functional_call(plain[0], mixed_by_hand(plain, shares), (x,))
    for task in model.heads:
        torch.testing.assert_close(found[task], expected[task], rtol=1e-6, atol=1e-7)  # shares of float32
        assert not torch.allclose(equal[task], found[task], rtol=1e-3)
        assert torch.equal(model(x)[task], equal[task])


@pytest.mark.parametrize("kind", TRUNKS)
def test_the_corner_of_a_task_is_its_member_alone(kind):
    model, plain, x = members(kind)
    for place, own in enumerate(plain):
        preference_of(model).set(torch.eye(3)[place])
        expected = own(x)
        assert all(torch.equal(answer, expected[task]) for task, answer in model(x).items())


def test_what_is_left_without_members_is_the_mixture():
    model, plain, x = members()
    names = list(plain[0].state_dict())
    preference_of(model).set([0.6, 0.3, 0.1])
    expected = model(x)
    without_members(model)
    assert list(model.state_dict()) == names and preference_of(model) is None
    assert all(torch.equal(answer, expected[task]) for task, answer in model(x).items())


def test_a_copy_has_a_preference_of_its_own_and_the_state_has_the_members_alone():
    model, plain, x = members()
    other = copy.deepcopy(model)
    preference_of(other).set([1.0, 0.0, 0.0])
    assert preference_of(model).shares.tolist() == pytest.approx([1 / 3] * 3)
    before = sum(p.numel() for p in plain[0].parameters())
    assert sum(p.numel() for p in model.parameters()) == 3 * before
    assert set(plain_names(model).values()) == {name for name, _ in plain[0].named_parameters()}
    assert not any("preference" in name for name in model.state_dict())
    fresh = copy.deepcopy(plain[1])
    add_members(fresh)
    fresh.load_state_dict(model.state_dict())
    assert all(torch.equal(answer, model(x)[task]) for task, answer in fresh.eval()(x).items())


def test_copies_are_told_apart_by_a_little_noise():
    plain = make("tokens", 0)
    model = copy.deepcopy(plain)
    add_members(model, [plain, plain])
    weight = model.backbone.embed.parametrizations.weight
    noise = (weight.original1 - weight.original0).std() / weight.original0.std()
    assert 0.5 * NOISE < noise < 2 * NOISE
    norm = model.backbone.block.norm1.parametrizations.weight
    assert torch.equal(norm.original0, norm.original1)  # both are ones


def test_what_is_frozen_or_outside_of_the_part_has_one_value():
    plain = MultiTaskModel(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 4)), {"a": nn.Linear(4, 1)})
    plain.freeze(["backbone.1"])
    for part, names in (((), {"0", "2"}), (("2",), {"2"}), (("*.bias",), {"0", "2"})):
        model = copy.deepcopy(plain)
        add_members(model, part=part)
        found = {name.split(".")[1] for name, _ in model.named_parameters() if "original0" in name}
        assert found == {*names, "a"}


def test_what_cannot_have_members():
    with pytest.raises(ValueError, match=r"^part=blocks matches no parameter of the backbone that is trained; "):
        members(part=["blocks"])
    gru = MultiTaskModel(nn.GRU(3, 4), {"a": nn.Linear(4, 1)})
    with pytest.raises(ValueError, match=r"^backbone\.weight_ih_l0: torch's GRU takes no mixture of members"):
        add_members(gru)
    tied = MultiTaskModel(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), {"a": nn.Linear(4, 1)})
    tied.backbone[1].weight = tied.backbone[0].weight
    with pytest.raises(ValueError, match=r"^backbone\.0\.weight and backbone\.1\.weight are one parameter"):
        add_members(tied)


def test_running_statistics_are_refused_unless_they_are_frozen():
    def model():
        return MultiTaskModel(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), {"a": nn.Linear(4, 1)})

    with pytest.raises(ValueError, match=r"^backbone\.1 \(BatchNorm1d\) would have one mean and variance for all pref"):
        add_members(model())
    frozen = model()
    frozen.freeze(["backbone.1"])
    add_members(frozen)
    assert frozen.training and not frozen.backbone[1].training


def test_groups_of_the_optimizer_see_the_members_as_the_parameters():
    class Named(Tiny):
        def no_weight_decay(self):
            return {"1.weight"}

    def decayed(model):
        node = {"weight_decay_exclude_1d": True}
        groups = split_groups([{"name": "all", "params": list(model.parameters())}], node, model)
        names = plain_names(model)
        return {names[p] for group in groups if "weight_decay" not in group for p in group["params"]}

    plain = MultiTaskModel(Named(4), {"a": nn.Linear(8, 2), "b": nn.Linear(8, 2)})
    model = copy.deepcopy(plain)
    add_members(model)
    assert decayed(model) == decayed(plain) == {"heads.a.weight", "heads.b.weight"}
