"""MMoE, CGC and PLE give what Torch-RecHub's give, with its batch normalisation replaced by the identity."""

from itertools import pairwise

import pytest
import torch
from support.architectures import assemble
from torch import nn

from mtl.architectures import CGC, PLE, MMoE

TASKS = ("a", "b", "c")
SIZE = 5  # numbers of a sample


def mmoe(theirs, ours):
    yield from zip(theirs.experts, ours.backbone.experts, strict=True)
    yield from zip(theirs.gates, (head.reader.gate for head in ours.heads.values()), strict=True)


def cgc(theirs, ours):
    (level,) = theirs.cgc_layers
    yield from zip(level.experts_shared, ours.backbone.experts, strict=True)
    own = [expert for head in ours.heads.values() for expert in head.reader.experts]
    yield from zip(level.experts_specific, own, strict=True)
    yield from zip(level.gates_specific, (head.reader.gate for head in ours.heads.values()), strict=True)


def ple(theirs, ours):
    *lower, last = theirs.cgc_layers
    readers = [head.reader for head in ours.heads.values()]
    for number, (level, own) in enumerate(zip(lower, ours.backbone.levels, strict=True), 1):
        yield from zip(level.experts_specific, (e for experts in own.own.values() for e in experts), strict=True)
        yield from zip(level.experts_shared, own.shared, strict=True)
        yield level.gate_shared, own.shared_gate
        gates = [reader.below for reader in readers] if number == len(lower) else own.gates.values()
        yield from zip(level.gates_specific, gates, strict=True)
    yield from zip(last.experts_specific, (e for reader in readers for e in reader.experts), strict=True)
    yield from zip(last.experts_shared, ours.backbone.last, strict=True)
    yield from zip(last.gates_specific, (reader.gate for reader in readers), strict=True)


# By name: our class with its arguments, theirs, the widths of an expert, and which of the modules are the same.
KINDS = {
    "mmoe": ((MMoE, {"experts": 4}), ("MMOE", {"n_expert": 4}), [6, 4], mmoe),
    "cgc": ((CGC, {"shared": 2, "own": 3}),
            ("PLE", {"n_level": 1, "n_expert_specific": 3, "n_expert_shared": 2}), [6, 4], cgc),
    "ple": ((PLE, {"levels": 2, "shared": 2, "own": 2}),
            ("PLE", {"n_level": 2, "n_expert_specific": 2, "n_expert_shared": 2}), [4], ple),
    "ple, three levels": ((PLE, {"levels": 3, "shared": 1, "own": 2}),
                          ("PLE", {"n_level": 3, "n_expert_specific": 2, "n_expert_shared": 1}), [4], ple),
}  # fmt: skip


def their_model(kind, arguments, widths):
    from torch_rechub.basic.features import DenseFeature
    from torch_rechub.models import multi_task

    features = [DenseFeature(f"x{i}") for i in range(SIZE)]
    model = getattr(multi_task, kind)(
        features, ["regression"] * len(TASKS), **arguments,
        expert_params={"dims": widths}, tower_params_list=[{"dims": []}] * len(TASKS),
    )  # fmt: skip
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.BatchNorm1d):
            model.set_submodule(name, nn.Identity())
    model.embedding = Embedded()  # theirs is in float32
    return model.double()


class Embedded(nn.Module):
    def forward(self, x, *_, **__):
        return x


def linears(module):
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]


@pytest.mark.parametrize("name", KINDS)
def test_predictions_are_those_of_torch_rechub(name, monkeypatch):
    pytest.importorskip("torch_rechub")
    architecture, (kind, arguments), widths, pairs = KINDS[name]
    layers = [SIZE, *widths, *([4] * (arguments.get("n_level", 1) - 1))]
    monkeypatch.setattr("support.architectures.backbone", lambda: nn.Sequential(
        *(part for a, b in pairwise(layers) for part in (nn.Linear(a, b), nn.ReLU()))
    ))  # fmt: skip
    torch.manual_seed(0)
    theirs = their_model(kind, arguments, widths)
    ours = assemble(architecture, TASKS, head=lambda: nn.Linear(4, 1)).double()
    inputs = torch.randn(7, SIZE, dtype=torch.float64)
    ours(inputs)
    same = [*pairs(theirs, ours), *zip(theirs.towers, (head.head for head in ours.heads.values()), strict=True)]
    for their_part, our_part in same:
        for source, target in zip(linears(their_part), linears(our_part), strict=True):
            target.load_state_dict(source.state_dict())
    assert sum(len(linears(part)) for part, _ in same) == len(linears(theirs))
    right = theirs(inputs)
    found = torch.cat(list(ours(inputs).values()), 1)
    torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-13)
    with torch.no_grad():  # negative control
        next(ours.backbone.parameters()).mul_(1.001)
    assert (torch.cat(list(ours(inputs).values()), 1) - right).abs().max() > 1e-6
