"""Images are normalised as the backbone's weights want, for every data set of images in colour."""

import logging

import pytest
import timm
import torch
from support.composing import configuration

from mtl.config.build import build_parts
from mtl.data.preprocess import MEAN, STD

SIZES = {"celeba": 32, "taskonomy": 32, "pascal_context": 28, "image_table": 32, "office": 32}
NAMES = [*SIZES, "nyuv2", "cityscapes"]
OWN = ["~backbone", "+backbone._target_=support.data_parts.Trunk"]  # of somebody's own, which says nothing


def made(name, root, *overrides):
    size = [f"data.image_size={SIZES[name]}"] if name in SIZES else []
    cfg = configuration(f"data={name}", "data.batch_size=2", "device=cpu", *size, *overrides).copy()
    cfg.data.root = str(root)
    return build_parts(cfg)


def pixels(parts):
    """The first inputs of the test split, [3, H, W]."""
    inputs = parts.data.test[0][0]
    return next(iter(inputs.values())) if isinstance(inputs, dict) else inputs


@pytest.mark.parametrize("name", NAMES)
def test_the_pixels_are_those_that_the_weights_want(fixture_root, name, caplog):
    caplog.set_level(logging.INFO)
    half = made(name, fixture_root(name), "backbone=vit_tiny" if name == "image_table" else "backbone=tiny_resnet")
    words = [r.getMessage() for r in caplog.records if "images are normalised" in r.getMessage()]
    assert words == ["images are normalised by mean [0.5, 0.5, 0.5], std [0.5, 0.5, 0.5]: the backbone's own"]
    plain = pixels(half) * 0.5 + 0.5
    assert plain.min() >= -1e-6 and plain.max() <= 1 + 1e-6
    assert half.description["normalize"] == {"mean": [0.5] * 3, "std": [0.5] * 3}
    imagenet = pixels(made(name, fixture_root(name), "backbone=resnet10t"))
    std, mean = (torch.tensor(values)[:, None, None] for values in (STD, MEAN))
    torch.testing.assert_close(imagenet * std + mean, plain, atol=1e-5, rtol=1e-5)
    assert (imagenet - pixels(half)).abs().max() > 0.05, "the negative control"


def test_where_the_backbone_says_nothing_they_are_imagenets(fixture_root, caplog):
    caplog.set_level(logging.INFO)
    parts = made("nyuv2", fixture_root("nyuv2"), *OWN)
    assert parts.description["normalize"] == {"mean": list(MEAN), "std": list(STD)}
    assert any(r.getMessage().endswith(": ImageNet's") for r in caplog.records)


@pytest.mark.parametrize("data", ["digits", "scenes"])
def test_data_of_other_pixels_stay_as_they_are(data, caplog):
    caplog.set_level(logging.INFO)
    first = [build_parts(configuration(f"data={data}", f"backbone={name}", "data.image_size=32", "device=cpu"))
             for name in ("tiny_resnet", "resnet10t")]  # fmt: skip
    assert torch.equal(first[0].data.test[0][0], first[1].data.test[0][0])
    assert not [r for r in caplog.records if "normalised" in r.getMessage()]


def test_weights_for_pixels_that_nobody_normalises_are_a_warning(tmp_path, caplog):
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "weights.pth")
    options = ["data=scenes", "backbone=tiny_resnet", "data.image_size=32", "device=cpu"]
    build_parts(configuration(*options, f"backbone.pretrained={tmp_path / 'weights.pth'}"))
    (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING" and "normalised" in r.getMessage()]
    assert "normalised by mean [0.5, 0.5, 0.5], std [0.5, 0.5, 0.5], and the data set (Scenes)" in warning
