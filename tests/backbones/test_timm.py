"""Kinds of features over unusual models; every shipped configuration is executed in tests/config."""

import pytest
import timm
import torch
from torch import nn

from mtl.backbones import CausalTransformer, ConvNet, Tabular, Timm
from mtl.backbones.transformer import CausalBlock
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


# ------------------------------------------------------------------------------------- weights and their pixels


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("vit_tiny_patch16_224", [0.5] * 3, [0.5] * 3),
        ("test_resnet", [0.5] * 3, [0.5] * 3),
        ("resnet18", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ("mobilenetv3_small_050", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ],
)
@pytest.mark.parametrize("features", ["pooled", "pyramid"])
def test_a_model_says_for_which_pixels_its_weights_are(name, mean, std, features):
    assert Timm(name, features=features, image_size=32).data_config == {"mean": mean, "std": std}
    assert Timm(name, features=features, image_size=32, in_channels=1).data_config is None


def test_an_overlay_says_other_pixels():
    options = {"pretrained_cfg_overlay": {"mean": (0.1, 0.2, 0.3), "std": (1.0, 1.0, 1.0)}}
    assert Timm("test_resnet", options=options).data_config == {"mean": [0.1, 0.2, 0.3], "std": [1.0] * 3}


@pytest.fixture
def weights(tmp_path):
    """Files of weights: whole ones, of an encoder under another prefix, with a part missing or left over, or broken."""
    torch.manual_seed(1)
    whole = timm.create_model("test_resnet").state_dict()
    some = {k: v for k, v in whole.items() if "layer4" not in k}
    files = {
        "whole": whole,
        "lightning": {"state_dict": {f"encoder.{k}": v for k, v in whole.items()}},
        "some": {**some, "projector.weight": torch.ones(2)},
        "narrow": {k: v[:, :1] if k == "layer1.0.conv1.weight" else v for k, v in whole.items()},
    }
    for name, content in files.items():
        torch.save(content, tmp_path / f"{name}.pth")
    (tmp_path / "text.pth").write_text("text")
    return {name: str(tmp_path / f"{name}.pth") for name in [*files, "text", "gone"]}, whole


WAYS = {
    "checkpoint_path": lambda file: {"options": {"checkpoint_path": file}},
    "overlay": lambda file: {"pretrained": True, "options": {"pretrained_cfg_overlay": {"file": file}}},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("features", ["pooled", "tokens", "pyramid"])
@pytest.mark.parametrize("in_channels", [3, 1])
def test_weights_come_from_a_file(weights, caplog, way, features, in_channels):
    files, whole = weights
    model = Timm("test_resnet", features=features, in_channels=in_channels, **WAYS[way](files["whole"]))
    own = model.model.state_dict()
    same = [key for key, value in own.items() if key in whole and torch.equal(value, whole[key])]
    assert len(same) >= len(own) - (in_channels == 1), "all but the first convolution, which is fitted to the channels"
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    random = Timm("test_resnet", features=features, in_channels=in_channels).model.state_dict()
    assert not torch.equal(random["layer1.0.conv1.weight"], whole["layer1.0.conv1.weight"]), "the negative control"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("features", ["pooled", "pyramid"])
@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("gone", "the weights of test_resnet are to come from {file}, which is no file."),
        ("lightning", "none of the keys in {file} fits test_resnet: they are encoder.conv1.0.weight, encoder."),
        (
            "narrow",
            "the weights in {file} cannot be loaded into test_resnet: layer1.0.conv1.weight is [32, 1, ",
        ),
        ("text", "the weights in {file} cannot be loaded into test_resnet: "),
    ],
)
def test_a_file_that_does_not_fit_is_one_sentence(weights, way, features, file, words):
    files, _ = weights
    with pytest.raises(ValueError) as caught:
        Timm("test_resnet", features=features, **WAYS[way](files[file]))
    message = str(caught.value)
    assert message.startswith(words.format(file=files[file])) and "\n" not in message and "pyramid" not in message


@pytest.mark.parametrize("way", WAYS)
def test_parameters_that_stay_random_and_keys_that_are_left_over_are_counted(weights, caplog, way):
    files, whole = weights
    Timm("test_resnet", **WAYS[way](files["some"]))
    lacking = [key for key in whole if "layer4" in key and "num_batches" not in key]
    (message,) = [record.getMessage() for record in caplog.records if record.name == "mtl.pretrained"]
    assert message.startswith(f"{files['some']}: 60 of the 75") and f"random: {len(lacking)}, {lacking[0]}" in message
    assert message.endswith("left over: 1, projector.weight")


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_folder_that_timm_has_written_is_a_model(tmp_path, name):
    from timm.models import save_for_hf

    torch.manual_seed(1)
    model = timm.create_model(name, num_classes=7, pretrained_cfg_overlay={"mean": (0.1, 0.2, 0.3)})
    save_for_hf(model, str(tmp_path))
    for features in ("pooled", "pyramid"):
        ours = Timm(f"local-dir:{tmp_path}", pretrained=True, features=features, image_size=64)
        assert ours(torch.zeros(2, 3, 64, 64)) is not None and ours.data_config["mean"] == [0.1, 0.2, 0.3]
    own, whole = Timm(f"local-dir:{tmp_path}", pretrained=True).model.state_dict(), model.state_dict()
    assert all(torch.equal(value, whole[key]) for key, value in own.items())
    random = Timm(f"local-dir:{tmp_path}").model.state_dict()
    assert any(not torch.equal(value, whole[key]) for key, value in random.items()), "the negative control"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet1", "name=resnet1 is no timm model; the closest are "),
        ("local-dir:/nowhere", "name=local-dir:/nowhere cannot be made by timm: "),
        ("hf-hub:timm/nothing_here", "name=hf-hub:timm/nothing_here cannot be made by timm: "),
        ("s3:bucket", "name=s3:bucket cannot be made by timm: Unknown model source 's3'"),
    ],
)
def test_a_name_that_is_none_is_one_sentence(name, words):
    with pytest.raises(ValueError) as caught:
        Timm(name, image_size=32)
    assert str(caught.value).startswith(words) and "\n" not in str(caught.value)


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


def test_a_table_is_embedded_beside_its_numbers():
    torch.manual_seed(0)
    backbone = Tabular(numbers=2, categories=[3, 1000], hidden=[8, 4], dropout=0.5).eval()
    inputs = {"numbers": torch.randn(5, 2), "categories": torch.tensor([[0, 1], [2, 999], [1, 0], [0, 0], [2, 3]])}
    first, second = (own.weight for own in backbone[0].embeddings)
    assert first.shape == (3, 3) and second.shape == (1000, 50)  # ceil(1.6 · 3^0.56) and at most 50
    assert not first[0].any() and not second[0].any() and first[1:].any()
    codes = inputs["categories"]
    x = torch.cat([inputs["numbers"], first[codes[:, 0]], second[codes[:, 1]]], 1)
    linear = [layer for layer in backbone if isinstance(layer, nn.Linear)]
    expected = linear[1](linear[0](x).relu()).relu()
    torch.testing.assert_close(backbone(inputs), expected)
    assert sum(isinstance(layer, nn.Dropout) for layer in backbone) == 2
    no_categories = Tabular(numbers=2, categories=[], hidden=[4])
    assert no_categories({"numbers": torch.zeros(3, 2), "categories": torch.zeros(3, 0).long()}).shape == (3, 4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"hidden": []}, "hidden=[] must be one width or more"),
        ({"hidden": [0]}, "hidden=[0] must be one width or more"),
        ({"embedding": 0}, "embedding=0 must be 1 or more"),
        ({"embedding": [2]}, "embedding=[2] must be 1 or more, or a list of such sizes, one for each of 2"),
    ],
    ids=["no layer", "no width", "no size", "too few sizes"],
)
def test_what_does_not_fit_a_table_is_named(arguments, words):
    with pytest.raises(ValueError) as caught:
        Tabular(numbers=1, categories=[3, 4], **arguments)
    assert words in str(caught.value)


def test_one_number_sets_the_size_of_the_convolutions():
    model = ConvNet(5, in_channels=2)
    assert model(torch.zeros(3, 2, 16, 16)).shape == (3, 20)
    assert (
        sum(p.numel() for p in model.parameters()) == 90 * 25 + 9 * 5 * 2 + 14 * 5
    )  # of 3×3 weights, and normalisation
    with pytest.raises(ValueError, match=r"^width=0 must be 1 or more"):
        ConvNet(0)
