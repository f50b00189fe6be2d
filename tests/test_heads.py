import math

import pytest
import torch
from timm.layers import AttentionPoolLatent
from torch import nn
from torch.nn.functional import conv2d, group_norm, interpolate

from mtl.backbones import Timm
from mtl.config import load
from mtl.config.build import build
from mtl.config.dry_run import describe_features
from mtl.errors import ConfigError
from mtl.gradients.cut import Cut
from mtl.heads import FPN, MLP, AttentionPool, DeepLab, NextToken, PyramidPool


def test_shapes():
    assert MLP(6, 3, hidden_features=5)(torch.zeros(2, 4, 6)).shape == (2, 4, 3)
    assert PyramidPool([2, 3], 4)([torch.zeros(5, 2, 8, 8), torch.zeros(5, 3, 4, 4)]).shape == (5, 4)


def test_a_pyramid_head_reads_every_level():
    head = PyramidPool([1, 1], 1)
    levels = [torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 2, 2)]
    plain = head(levels)
    for i in range(2):
        changed = [level + (j == i) for j, level in enumerate(levels)]
        assert head(changed).item() - plain.item() == pytest.approx(head.linear.weight[0, i].item(), abs=1e-6)


def test_an_impossible_width_is_named():
    with pytest.raises(ValueError, match="hidden_features=0 must each be 1 or more"):
        MLP(2, 2, hidden_features=0)


def test_a_next_token_head_has_a_layer_of_its_kind():
    features = torch.randn(2, 6, 8)
    changed = features.clone()
    changed[:, 2] += torch.randn(8)
    for layer, seen in (("mlp", [2]), ("transformer", [2, 3, 4, 5])):
        head = NextToken(8, 11, layer, num_heads=2)
        difference = (head(changed) - head(features)).abs().amax((0, 2))
        assert head(features).shape == (2, 6, 11)
        assert torch.nonzero(difference > 1e-6).flatten().tolist() == seen


# --------------------------------------------------------------------------------------------------- dense

# Maps with channels first and last, a pyramid, one size at all levels, and a model with batch norm everywhere.
BACKBONES = ["test_resnet", "test_convnext", "swin_tiny_patch4_window7_224", "test_vit"]
OUTPUTS = {"segmentation": 5, "depth": 1}


def pyramid(channels=(8, 16, 24), side=8, batch=2):
    torch.manual_seed(0)
    sides = [math.ceil(side / 2**i) for i in range(len(channels))]
    return [torch.randn(batch, c, s, s + 1) for c, s in zip(channels, sides, strict=True)]


@pytest.mark.parametrize("name", BACKBONES)
def test_dense_heads_read_any_pyramid_and_predict_every_pixel(name):
    """The image is no multiple of the strides and not square; at the cut, as in training, with a batch of one."""
    size = (64, 96) if "vit" in name else (50, 70)
    backbone = Timm(name, features="pyramid", image_size=size)
    images = torch.randn(1, 3, *size)
    z = backbone.eval()(images)
    channels = [level.shape[1] for level in z]
    for head in (
        FPN(channels, 5, size, width=16, **backbone.feature_info),
        DeepLab(channels, 1, size, width=16, low_channels=8, **backbone.feature_info),
        DeepLab(channels, 1, size, width=16, low_channels=0, **backbone.feature_info),
    ):
        cut = Cut(z)
        prediction = head.train()(cut.features)
        assert prediction.shape[2:] == size and len(prediction) == 1
        prediction.square().mean().backward()
        cut.collect()
        cut.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in backbone.parameters())
        backbone.zero_grad()
        z = backbone(images)


def test_fpn_is_lateral_convolutions_top_down_sums_and_one_prediction():
    """Written out with functions, level by level."""
    levels = pyramid()
    head = FPN([8, 16, 24], 3, (20, 26), width=16)
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.3)
    weights = head.state_dict()

    def normed(x, prefix, padding):
        x = conv2d(x, weights[f"{prefix}.0.weight"], padding=padding)
        return group_norm(x, 8, weights[f"{prefix}.1.weight"], weights[f"{prefix}.1.bias"])

    merged, last = 0, None
    for i in (2, 1, 0):
        lateral = normed(levels[i], f"pyramid.inner_blocks.{i}", 0)
        last = lateral if last is None else lateral + interpolate(last, size=lateral.shape[2:], mode="nearest")
        out = normed(last, f"pyramid.layer_blocks.{i}", 1).relu()
        merged = merged + interpolate(out, size=levels[0].shape[2:], mode="bilinear", align_corners=False)
    expected = conv2d(merged, weights["predict.weight"], weights["predict.bias"])
    expected = interpolate(expected, size=(20, 26), mode="bilinear", align_corners=False)
    torch.testing.assert_close(head(levels), expected, rtol=1e-4, atol=1e-4)
    nn.init.zeros_(head.pyramid.inner_blocks[2][0].weight)
    assert (head(levels) - expected).abs().max() > 0.01


def read_levels(head, channels):
    """Which levels a head's prediction depends on."""
    levels = [level.requires_grad_() for level in pyramid(channels)]
    head.eval()(levels).square().sum().backward()
    return [i for i, level in enumerate(levels) if level.grad is not None and level.grad.abs().sum() > 0]


def test_levels_that_are_finer_than_the_stride_are_left_out():
    channels = (8, 8, 16, 24)
    reductions = [2, 4, 8, 16]
    assert read_levels(FPN(channels, 1, 16, width=8, reductions=reductions), channels) == [1, 2, 3]
    assert read_levels(FPN(channels, 1, 16, width=8, stride=2, reductions=reductions), channels) == [0, 1, 2, 3]
    assert read_levels(FPN(channels, 1, 16, width=8), channels) == [0, 1, 2, 3]
    deep = dict(width=8, reductions=reductions)
    assert read_levels(DeepLab(channels, 1, 16, low_channels=8, **deep), channels) == [1, 3]
    assert read_levels(DeepLab(channels, 1, 16, low_channels=8, stride=2, **deep), channels) == [0, 3]
    assert read_levels(DeepLab(channels, 1, 16, low_channels=0, **deep), channels) == [3]
    one_size = [16, 16, 16, 16]
    assert read_levels(FPN(channels, 1, 16, width=8, reductions=one_size), channels) == [0, 1, 2, 3]


@pytest.mark.parametrize("make", [FPN, DeepLab])
def test_a_sample_does_not_depend_on_its_batch(make):
    """Negative control: with the batch norm that the parts have by themselves it does."""
    head = make([8, 16, 24], 2, 16, width=16)
    for module in head.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    levels = pyramid(batch=3)
    alone = head.train()([level[:1] for level in levels])
    torch.testing.assert_close(head(levels)[:1], alone, rtol=1e-4, atol=1e-5)
    for name, module in list(head.named_modules()):
        if isinstance(module, nn.GroupNorm):
            head.set_submodule(name, nn.BatchNorm2d(module.num_channels))
    assert (head(levels)[:1] - head([level[:2] for level in levels])[:1]).abs().max() > 1e-3


def test_a_rate_reaches_as_far_as_it_says():
    head = DeepLab([8], 1, 33, width=8, low_channels=0, rates=(6,)).eval()
    for module in head.modules():  # each normalisation is over all positions, which would spread every change
        if isinstance(module, nn.GroupNorm):
            module.forward = lambda x: x
    head.aspp.convs[-1] = head.aspp.convs[0]  # and so is the pooling
    maps = torch.zeros(1, 8, 33, 33)
    changed = maps.clone()
    changed[:, :, 16, 16] = 1.0
    rows = (head([changed]) - head([maps])).abs().amax((0, 1, 3)).nonzero().flatten().tolist()
    assert rows == [9, 10, 11, 15, 16, 17, 21, 22, 23]  # six away, and one more by the convolution after


@pytest.mark.parametrize("make", [FPN, DeepLab])
def test_a_width_that_cannot_be_grouped_is_named(make):
    with pytest.raises(ValueError, match="must be multiples of 8, and 12 is not"):
        make([8, 8], 1, 16, width=12)


@pytest.mark.parametrize("head", ["fpn", "deeplab"])
def test_heads_learn_the_image_size_from_the_data(head):
    choose = [f"head@heads.{task}={head}" for task in ("segmentation", "depth", "normals")]
    parts, state = build(load(["data=scenes", "data.image_size=32", "data.batch_size=2", "device=cpu", *choose]))
    batch = parts.data.train.batch([0, 1], 0)
    result = state.strategy.step(state.model, state.tasks, *batch, measure=True)
    assert result.gram.shape == (3, 3) and all(loss.isfinite() for loss in result.losses.values())
    assert state.model(batch[0])["normals"].shape == (2, 3, 32, 32)


def test_pooled_features_do_not_fit_a_dense_head():
    words = (
        r"heads.segmentation: mtl.heads.FPN needs channels, which .* a backbone that gives a list of maps .*=pyramid"
    )
    with pytest.raises(ConfigError, match=words):
        build(load(["data=scenes", "data.image_size=32", "backbone.features=pooled"]))


def test_attention_pooling_leaves_padding_out_and_is_timms_without_it():
    torch.manual_seed(0)
    head = AttentionPool(8, 3, num_heads=2).eval()
    tokens, mask = torch.randn(2, 5, 8), torch.tensor([[True] * 5, [True, True, False, False, False]])
    found = head({"tokens": tokens, "mask": mask})
    timms = AttentionPoolLatent(8, 3, num_heads=2).eval()
    timms.load_state_dict(head.state_dict())
    torch.testing.assert_close(found, torch.cat([timms(tokens[:1]), timms(tokens[1:, :2])]))
    torch.testing.assert_close(head(tokens), timms(tokens))
    changed = tokens.clone()
    changed[1, 2:] += 1
    assert torch.equal(head({"tokens": changed, "mask": mask}), found)
    assert not torch.allclose(head(changed)[1], found[1])  # negative control: without the mask
    with pytest.raises(ValueError, match="num_heads=3 must divide in_features=8"):
        AttentionPool(8, 3, num_heads=3)


def test_tokens_beside_a_mask_show_their_width():
    features = {"tokens": torch.zeros(2, 5, 8), "mask": torch.zeros(2, 5, dtype=torch.bool)}
    assert describe_features(features) == {"in_features": 8}
    assert describe_features({**features, "more": torch.zeros(2, 3)}) == {}
