"""The stages of a backbone in a row are the backbone, to the last bit."""

import pytest
import torch
from support.exactness import same
from torch import nn

from mtl.architectures.stages import channel_axis, stages
from mtl.backbones import ConvNet, Timm

TIMM = [
    *(("test_resnet", features) for features in ("pooled", "tokens", "pyramid")),
    *(("test_convnext", features) for features in ("pooled", "tokens", "pyramid")),
    *(("swin_tiny_patch4_window7_224", features) for features in ("pooled", "tokens", "pyramid")),
    *((name, features) for name in ("test_vit", "test_vit2", "test_vit3") for features in ("pooled", "tokens")),
]
SIZES = {"test_vit": 96, "swin_tiny_patch4_window7_224": 64}


def outputs_of(found, x):
    outputs = []
    for unit in found.units:
        x = unit(x)
        outputs.append(x)
    return outputs


@pytest.mark.parametrize(("name", "features"), TIMM)
def test_of_timm(name, features):
    torch.manual_seed(0)
    size = SIZES.get(name, 64)
    backbone = Timm(name, features=features, image_size=size, options={"drop_rate": 0.3}).train()
    found, x = stages(backbone), torch.randn(2, 3, size, size)
    assert len(found.units) == (5 if (name, features) == ("test_resnet", "pyramid") else 4)
    torch.manual_seed(1)
    whole = backbone(x)
    torch.manual_seed(1)
    outputs = outputs_of(found, x)
    assert same(found.read(outputs), whole)
    assert not same(found.read([*outputs[:-1], 2 * outputs[-1]]), whole)  # the control
    parameters = [p for part in (*found.units, found.read) for p in part.parameters()]
    assert len(set(parameters)) == len(parameters)  # each in one part
    assert all(any(p is q for q in backbone.parameters()) for p in parameters)
    widths = [output.shape[channel_axis(output, found.last_axis_is_channels)] for output in outputs]
    own = backbone.model.feature_info
    expected = own.channels() if features == "pyramid" else [level["num_chs"] for level in own][-4:]
    assert widths == expected


def test_of_a_sequence():
    conv = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU())]
    dense = [nn.Flatten(), nn.Linear(64, 6), nn.Tanh(), nn.LayerNorm(6)]
    backbone = nn.Sequential(nn.Identity(), *conv, *dense)
    found, x = stages(backbone), torch.randn(3, 1, 8, 8)
    assert [len(unit) for unit in found.units] == [4, 2, 3]
    outputs = outputs_of(found, x)
    assert torch.equal(found.read(outputs), backbone(x))
    assert [channel_axis(output, False) for output in outputs] == [1, 1, 1]
    assert channel_axis(torch.zeros(2, 5, 7), False) == 2 and channel_axis(torch.zeros(2, 5, 7, 3), True) == 3


def test_pooling_and_flattening_at_the_end_of_a_sequence_read_the_last_stage():
    torch.manual_seed(0)
    backbone, x = ConvNet(2, in_channels=1), torch.randn(3, 1, 8, 8)
    found = stages(backbone)
    outputs = outputs_of(found, x)
    assert [tuple(output.shape) for output in outputs] == [(3, 2, 4, 4), (3, 4, 2, 2), (3, 8, 2, 2)]
    assert torch.equal(found.read(outputs), outputs[-1].mean((2, 3))) and not torch.equal(outputs[-1], 0 * outputs[-1])


@pytest.mark.parametrize(
    ("backbone", "words"),
    [
        (lambda: nn.Linear(3, 3), "the stages of Linear are not known; use a timm ResNet"),
        (lambda: Timm("test_efficientnet"), "the stages of timm's EfficientNet are not known"),
        (
            lambda: Timm("test_vit", features="pyramid"),
            "the stages of features=pyramid of timm's VisionTransf",
        ),
    ],
)
def test_others_are_refused(backbone, words):
    with pytest.raises(ValueError) as error:
        stages(backbone())
    assert str(error.value).startswith(words)
