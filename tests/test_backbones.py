"""Kinds of features over unusual models; every shipped configuration is executed in test_config.py."""

import pytest
import timm
import torch
from torch import nn

from mtl.backbones import Timm
from mtl.config import ConfigError, build, load


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "swin_tiny_patch4_window7_224", "mobilenetv3_small_050"])
@pytest.mark.parametrize("features", ["pooled", "tokens", "pyramid"])
def test_features_have_the_promised_axes(name, features):
    """Models that think in [B, H, W, C], have class tokens, or another width before the classifier."""
    model = Timm(name, features=features, in_channels=2, image_size=64).eval()
    z = model(torch.zeros(3, 2, 64, 64))
    width = model.model.feature_info.channels()[-1] if features == "pyramid" else model.model.num_features
    if features == "pooled":
        assert z.shape == (3, model.model.head_hidden_size)
    elif features == "tokens":
        assert z.dim() == 3 and z.shape[0] == 3 and z.shape[2] == width
    else:
        assert [level.shape[1] for level in z] == model.model.feature_info.channels()
        assert [64 // level.shape[-1] for level in z] == model.feature_info["reductions"]


class Stubborn(nn.Module):
    """A model as timm has had them: no pooling, no feature maps."""

    num_features = 5

    def forward(self, x):
        return x.new_zeros(len(x), 5, 2, 2)

    def forward_features(self, x):
        return [self(x)]


@pytest.fixture
def stubborn(monkeypatch):
    def mtl_stubborn(features_only=False, num_classes=0, in_chans=3, colour=None, **timms_own):
        if features_only:
            raise RuntimeError("features_only not implemented for this model.\nReally.")
        if colour:
            raise TypeError("unexpected keyword argument colour")
        return Stubborn()

    monkeypatch.setitem(timm.models._registry._model_entrypoints, "mtl_stubborn", mtl_stubborn)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ("pooled", "backbone: features=pooled: this model gives [2, 5, 2, 2], not one vector an image; use tokens."),
        ("tokens", "backbone: features=tokens: this model gives a list; use pooled or pyramid."),
        ("pyramid", "backbone: features=pyramid is not given by timm's mtl_stubborn (features_only not implemented"),
    ],
)
def test_features_that_a_model_does_not_give_are_named(stubborn, features, message):
    with pytest.raises(ConfigError) as caught:
        build(load(["backbone.name=mtl_stubborn", f"backbone.features={features}"]))
    assert str(caught.value).startswith(message)


def test_an_option_that_timm_does_not_take_is_named(stubborn):
    with pytest.raises(ConfigError, match=r"timm cannot make mtl_stubborn with .*unexpected keyword argument colour"):
        build(load(["backbone.name=mtl_stubborn", "+backbone.options.colour=1"]))


def test_options_reach_timm():
    assert Timm("test_vit", image_size=32, options={"patch_size": 8}).model.patch_embed.num_patches == 16
