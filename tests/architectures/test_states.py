"""Architectures on texts and molecules, between whose stages are tokens with a mask."""

import pytest
import torch

from mtl.architectures import LTB, NDDR, CrossStitch, FiLM
from mtl.backbones import MPNN, Text

TASKS = ["a", "b"]


def text():
    return Text(vocabulary=11, context=6, width=8, depth=3, num_heads=2)


def molecule():
    return MPNN(3, 2, width=4, edge_width=5)


def inputs(backbone):
    """Two samples, of which the second is shorter."""
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    if backbone is text:
        return {"tokens": torch.randint(11, (2, 5)), "mask": mask}
    return {"atoms": torch.randn(2, 5, 3), "bonds": torch.randn(2, 5, 5, 2), "mask": mask}


def features(architecture, x):
    """The features that each head reads."""
    trunk, readers = architecture.trunk.eval(), {task: architecture.reader(task).eval() for task in TASKS}
    with torch.no_grad():
        common = trunk(x)
        return {task: reader(common) for task, reader in readers.items()}


@pytest.fixture(params=[text, molecule], ids=["text", "molecule"])
def backbone(request):
    torch.manual_seed(0)
    return request.param


def test_columns_that_are_not_mixed_are_one_backbone_a_task(backbone):
    made = []

    def make():
        made.append(backbone().eval())
        return made[-1]

    x = inputs(backbone)
    alone = CrossStitch(make, TASKS, same=1.0, other=0.0)
    expected = made[0](x)
    for own in features(alone, x).values():
        torch.testing.assert_close(own, expected)
    mixed = features(CrossStitch(make, TASKS, same=0.7, other=0.1), x)
    assert not torch.allclose(mixed["a"], made[1](x), atol=1e-3), "the negative control"


def test_a_modulation_begins_as_hard_sharing_and_padding_does_not_count(backbone):
    plain = backbone().eval()
    x = inputs(backbone)
    film = FiLM(lambda: plain, TASKS)
    expected = plain(x)
    found = features(film, x)
    for own in found.values():
        torch.testing.assert_close(own, expected)
    shorter = {name: own[1:, :3] for name, own in x.items()}
    if "bonds" in x:
        shorter["bonds"] = x["bonds"][1:, :3, :3]
    torch.testing.assert_close(features(film, shorter)["b"], expected[1:])
    film.trunk.modulations[0]["b"].gamma.data.uniform_(0, 3)
    changed = features(film, x)
    torch.testing.assert_close(changed["a"], expected)
    assert not torch.allclose(changed["b"], expected, atol=1e-3)


def test_the_most_likely_parents_make_the_network(backbone):
    made = []

    def make():
        made.append(backbone().eval())
        return made[-1]

    x = inputs(backbone)
    ltb = LTB(make, TASKS)
    trunk, reader = ltb.trunk.eval(), ltb.reader("a").eval()
    with torch.no_grad():
        for unit in [*(row["b"] for row in trunk.units), reader.unit]:
            unit.logits.copy_(torch.tensor([0.0, 5.0]))
        # Task a reads column b at the end, and column b itself all the way down.
        found = reader(trunk(x))
    torch.testing.assert_close(found, made[1](x))
    assert not torch.allclose(found, made[0](x), atol=1e-3), "the negative control"


def test_statistics_of_padding_are_refused(backbone):
    with pytest.raises(ValueError, match=r"are (texts|molecules) with their mask, which this architecture does not"):
        NDDR(backbone, TASKS)
