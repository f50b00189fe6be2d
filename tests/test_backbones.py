"""Kinds of features over unusual models; every shipped configuration is executed in tests/config."""

import pytest
import timm
import torch
from torch import nn

from mtl.backbones import CausalBlock, CausalTransformer, Timm
from mtl.config import load
from mtl.config.build import build
from mtl.errors import ConfigError


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


@pytest.fixture
def transformer():
    torch.manual_seed(0)
    model = CausalTransformer(vocabulary=11, context=9, width=8, depth=3, num_heads=2).double()
    for parameter in model.parameters():  # also the embeddings count for something
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def test_a_later_token_changes_no_earlier_output(transformer):
    tokens = torch.randint(11, (2, 9))
    before = transformer(tokens)
    for place in range(9):
        changed = tokens.clone()
        changed[:, place] = (changed[:, place] + 1) % 11
        after = transformer(changed)
        assert torch.equal(after[:, :place], before[:, :place])
        assert ((after[:, place:] - before[:, place:]).abs().amax((0, 2)) > 1e-6).all()  # and every later one


def test_the_transformer_is_torchs_own_layer_by_layer(transformer):
    """Against torch's encoder with the same weights and a causal mask."""
    layer = nn.TransformerEncoderLayer(8, 2, 32, 0.0, "gelu", batch_first=True, norm_first=True)
    torchs = nn.TransformerEncoder(layer, 3, norm=nn.LayerNorm(8), enable_nested_tensor=False).double()
    for ours, own in zip(transformer.blocks, torchs.layers, strict=True):
        own.self_attn.in_proj_weight, own.self_attn.in_proj_bias = ours.qkv.weight, ours.qkv.bias
        own.self_attn.out_proj.load_state_dict(ours.out.state_dict())
        own.norm1, own.norm2, own.linear1, own.linear2 = ours.norm, ours.mlp[0], ours.mlp[1], ours.mlp[3]
    torchs.norm = transformer.norm
    tokens = torch.randint(11, (2, 7))
    embedded = transformer.tokens(tokens) + transformer.positions[:7]
    mask = nn.Transformer.generate_square_subsequent_mask(7, dtype=torch.float64)
    torch.testing.assert_close(transformer(tokens), torchs(embedded, mask=mask, is_causal=True))


def test_what_does_not_fit_the_transformer_is_named(transformer):
    with pytest.raises(ValueError, match="10 tokens are more than context=9"):
        transformer(torch.zeros(1, 10, dtype=torch.int64))
    for num_heads in (0, 3):
        with pytest.raises(ValueError, match=f"width=8 must be a multiple of num_heads={num_heads}"):
            CausalBlock(8, num_heads)
