"""One raw input becomes exactly the tensor that the evaluation's splits give, from plain values alone."""

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mtl.data.celeba import CelebA
from mtl.data.digits import Digits
from mtl.data.image_table import ImageTable
from mtl.data.metadata import describe
from mtl.data.multimnist import MultiMNIST
from mtl.data.nyuv2 import NYUv2
from mtl.data.office import Office
from mtl.data.pascal_context import PascalContext
from mtl.data.preprocess import MEAN, STD, ImagePreprocess, TensorPreprocess, TextPreprocess
from mtl.data.scenes import Scenes
from mtl.data.stdlib import Stdlib
from mtl.data.taskonomy import Taskonomy

# By the data set's name, what makes it of its folder, and the file of the first test sample, below that folder.
OF_FILES = {
    "celeba": (CelebA, lambda data: f"Img/img_align_celeba/{data.test.names[0]}"),
    "cityscapes": (importlib.import_module("mtl.data.cityscapes").Cityscapes, lambda data: "val/image/0.npy"),
    "image_table": (ImageTable, lambda data: data.test.names[0]),
    "nyuv2": (NYUv2, lambda data: "val/image/0.npy"),
    "office": (lambda root: Office(root, ["dslr"], 31, image_size=20), lambda data: data.test._items["dslr"][0][0]),
    "pascal_context": (PascalContext, lambda data: f"JPEGImages/{data.test.names[0]}.jpg"),
    "taskonomy": (Taskonomy, lambda data: "rgb/hut0/point_0_view_0_domain_rgb.png"),
}


def remade(data):
    """The preprocess that a checkpoint's plain values make."""
    state = dict(describe(data)["preprocess"])
    module, _, name = state.pop("_target_").rpartition(".")
    return getattr(importlib.import_module(module), name)(**state)


@pytest.mark.parametrize("name", sorted(OF_FILES))
def test_a_file_becomes_what_the_test_split_gives(fixture_root, name):
    make, file_of = OF_FILES[name]
    data = make(str(fixture_root(name)))
    data.normalize.mean, data.normalize.std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.1]  # what a backbone wants
    inputs = data.test[0][0]
    expected = inputs["dslr"] if isinstance(inputs, dict) else inputs
    file = fixture_root(name) / file_of(data)
    preprocess = remade(data)
    assert torch.equal(preprocess(file), expected) and torch.equal(preprocess(str(file)), expected)
    if file.suffix != ".npy":
        with Image.open(file) as image:
            assert torch.equal(preprocess(image), expected)
    data.normalize.mean = [0.0, 0.0, 0.0]
    assert not torch.equal(remade(data)(file), expected), "the negative control: the backbone's mean counts"


@pytest.mark.parametrize("make", [Digits, lambda: Scenes(image_size=16, size=5)], ids=["digits", "scenes"])
def test_a_picture_of_what_is_made_is_read_as_it_is(make):
    data = make()
    sample = data.test[1][0]
    mean, std = (
        np.reshape(part, (-1, 1, 1)) for part in (data.preprocess.normalize.mean, data.preprocess.normalize.std)
    )
    pixels = (sample.numpy() * std + mean).clip(0, 1).astype(np.float32)
    array = pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, 2)
    assert torch.allclose(remade(data)(array), sample, atol=1e-5)
    stored = Image.fromarray((array * 255).round().astype(np.uint8))  # 8 bits keep half a 255th
    assert torch.allclose(remade(data)(stored), sample, atol=0.51 / 255 / std.min())


def test_multimnist_has_the_size_and_the_statistics_of_its_splits(fixture_root):
    data = MultiMNIST(str(fixture_root("multimnist")))
    sample = data.test[0][0]
    assert torch.allclose(remade(data)((sample.numpy()[0] * 0.3081 + 0.1307).clip(0, 1)), sample, atol=1e-6)


def test_an_image_is_resized_scaled_and_normalised():
    """Against Pillow's own resize, in float64: half a level of 8 bits is what rounding costs."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3)).astype(np.uint8)
    own = Image.fromarray(pixels).resize((16, 20), Image.Resampling.BILINEAR)
    expected = (np.asarray(own) / 255 - np.array(MEAN)) / np.array(STD)
    found = ImagePreprocess([20, 16])(Image.fromarray(pixels)).permute(1, 2, 0).numpy()
    assert found.shape == (20, 16, 3) and abs(found - expected).max() <= 1.01 / 255 / min(STD)
    assert abs(found - expected[:, ::-1]).max() > 1, "the negative control: mirrored"


def test_padding_continues_an_image_on_the_right_and_below():
    image = ImagePreprocess([4, 5], fit="pad", mean=[0] * 3, std=[1] * 3)(np.full((2, 3, 3), 255, np.uint8))
    assert image.shape == (3, 4, 5) and image[:, :2, :3].eq(1).all() and image.sum() == 18


@pytest.mark.parametrize(
    ("arguments", "raw", "words"),
    [
        (dict(size=[8, 8], fit="exact"), np.zeros((8, 9, 3), np.uint8), "has 8×9 pixels, but 8×8 are expected."),
        (dict(size=[8, 8], fit="pad"), np.zeros((9, 8, 3), np.uint8), "has 9×8 pixels, but at most 8×8 are expected."),
        (dict(size=[8, 8], channels=1, mean=[0], std=[1]), Image.new("RGB", (8, 8)), "its mode is RGB, but the model"),
        (dict(size=[8, 8]), np.zeros((8, 8, 4), np.uint8), "has an array [8, 8, 4] of uint8; [H, W, 3] of numbers"),
        (dict(size=[8, 8]), np.full((8, 8, 3), 2.0), "has the value 2; it must be from 0 to 1."),
        (dict(size=[8, 8]), 7, "an image must be a path, a PIL image or an array, but it is a int."),
        (dict(size=[8, 8]), "nowhere.png", "nowhere.png does not exist."),
        (dict(size=[8, 8]), Path("text.png"), "text.png cannot be read: cannot identify image file"),
    ],
    ids=["size", "too large", "mode", "channels", "range", "type", "no file", "no image"],
)
def test_what_is_no_image_of_the_model_is_one_sentence(tmp_path, monkeypatch, arguments, raw, words):
    monkeypatch.chdir(tmp_path)
    Path("text.png").write_text("text")
    with pytest.raises(ValueError) as caught:
        ImagePreprocess(**arguments)(raw)
    assert words in str(caught.value)


def test_a_text_becomes_its_last_tokens(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.txt").write_text(f"file {i}: " + "the cat sat on the mat. " * 40)
    data = Stdlib(path=str(tmp_path), context=16, vocabulary=260)
    preprocess = remade(data)
    window, targets = data.test.batch([0], epoch=0)
    whole = [*window[0].tolist(), *targets["next_8"][0, -8:].tolist()]
    assert preprocess(preprocess.decode(window[0].tolist())).tolist() == window[0].tolist()
    assert preprocess(preprocess.decode(whole)).tolist() == whole[-16:]
    assert preprocess("naïve").tolist() == [*"naïve".encode()], "shorter ones stay as short as they are"
    (tmp_path / "own.txt").write_text("th")
    assert preprocess(tmp_path / "own.txt").tolist() == preprocess("th").tolist()
    with pytest.raises(ValueError, match="the text is empty"):
        preprocess("")
    with pytest.raises(ValueError, match="a text must be a string, bytes or a path, but it is a int"):
        TextPreprocess([], 4)(3)


def test_tensors_are_taken_as_they_are(tmp_path):
    preprocess = TensorPreprocess({"shape": [2, 3], "dtype": "float32"})
    values = np.arange(6.0).reshape(2, 3)
    np.save(tmp_path / "x.npy", values)
    for raw in (values, values.tolist(), torch.tensor(values), tmp_path / "x.npy"):
        assert torch.equal(preprocess(raw), torch.arange(6.0).view(2, 3)) and preprocess(raw).dtype == torch.float32
    nested = TensorPreprocess({"a": {"shape": [], "dtype": "int64"}, "b": [{"shape": [1], "dtype": "float32"}]})
    made = nested({"a": 3, "b": [[0.5]]})
    assert made["a"].item() == 3 and made["b"][0].tolist() == [0.5]
    for wrong, words in [
        (np.zeros((3, 2)), r"must be a tensor \[2, 3\] of float32, but its shape is \[3, 2\]"),
        ("no.npy", "no.npy does not exist"),
        (object(), "but it is a object"),
    ]:
        with pytest.raises(ValueError, match=words):
            preprocess(wrong)
    with pytest.raises(ValueError, match="must be a tensor"):
        nested({"a": 0.5, "b": [[1.0]]})
    with pytest.raises(ValueError, match="must be a dict of a, b"):
        nested({"a": 1})
