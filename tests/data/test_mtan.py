"""NYUv2 and Cityscapes: samples read from arrays, and errors of malformed arrays."""

import numpy as np
import pytest
import torch

from mtl.data.augment import Depth, Disparity
from mtl.data.cityscapes import Cityscapes
from mtl.data.nyuv2 import NYUv2
from mtl.data.preprocess import MEAN, STD
from mtl.metrics import depth, normals, segmentation


def array(root, kind, number, split="train"):
    return np.load(root / split / kind / f"{number}.npy")


def test_nyuv2_is_what_its_arrays_hold(fixture_root):
    root = fixture_root("nyuv2")
    data = NYUv2(str(root), validation=0.2, augment=False)
    assert (len(data.train), len(data.val), len(data.test)) == (8, 2, 3)
    assert data.input_info == {"in_channels": 3, "image_size": (24, 32)}
    for split, folder, index, number in (("train", "train", 7, 7), ("val", "train", 1, 9), ("test", "val", 2, 2)):
        image, targets = getattr(data, split)[index]
        expected = (array(root, "image", number, folder) - np.array(MEAN)) / np.array(STD)
        np.testing.assert_allclose(image.numpy(), np.moveaxis(expected, 2, 0), rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(targets["segmentation"], array(root, "label", number, folder))
        assert targets["segmentation"].dtype == torch.long and (targets["segmentation"] == -1).sum() == 9
        np.testing.assert_allclose(targets["depth"][0], array(root, "depth", number, folder)[..., 0], rtol=1e-6)
        np.testing.assert_allclose(
            targets["normals"], np.moveaxis(array(root, "normal", number, folder), 2, 0), rtol=1e-6
        )
        other = array(root, "depth", 0, folder)[..., 0]
        assert not np.allclose(targets["depth"][0], other)  # the negative control


def test_samples_are_in_the_order_of_their_numbers(own_root):
    """Ten comes after nine, and not after one."""
    root = own_root("nyuv2")
    for kind in ("image", "label", "depth", "normal"):
        (root / "train" / kind / "9.npy").rename(root / "train" / kind / "10.npy")
    data = NYUv2(str(root), validation=0.1, augment=False)
    last = array(root, "depth", 10)[..., 0]
    np.testing.assert_allclose(data.val[0][1]["depth"][0], last, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16, np.uint8])
def test_arrays_of_any_dtype_are_read(own_root, dtype):
    """Integer images range to 255, and float images do if the first one exceeds 1."""
    root = own_root("nyuv2")
    plain = NYUv2(str(root), augment=False).train[2]
    for number in range(10):
        image, label = array(root, "image", number), array(root, "label", number)
        np.save(root / "train" / "image" / f"{number}.npy", (255 * image).round().astype(dtype))
        if dtype != np.uint8:
            np.save(root / "train" / "label" / f"{number}.npy", label.astype(dtype))
    image, targets = NYUv2(str(root), augment=False).train[2]
    torch.testing.assert_close(image, plain[0], atol=1e-5, rtol=1e-5)
    assert torch.equal(targets["segmentation"], plain[1]["segmentation"])


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("label", lambda a: np.where(a == a.max(), 40, a), "40; accepted are 0 to 12, and -1 for a missing label."),
        ("label", lambda a: np.where(a == a.max(), -2, a), "has the label -2; accepted are 0 to 12"),
        ("label", lambda a: a + 0.5, "has the label -0.5; accepted are 0 to 12"),
        ("label", lambda a: np.full(a.shape, np.nan), "has the label nan; accepted are 0 to 12"),
        ("label", lambda a: a[1:], r"has the shape [23, 32], but [24, 32] is expected."),
        ("depth", lambda a: a[..., 0], r"has the shape [24, 32], but [24, 32, 1] is expected."),
        ("depth", lambda a: -a, "it must be 0 (missing) or more, and finite."),
        ("depth", lambda a: np.where(a > 2, np.inf, a), "the value inf; it must be 0 (missing) or more, and finite."),
        ("normal", lambda a: np.moveaxis(a, 2, 0), r"has the shape [3, 24, 32], but [24, 32, 3] is expected."),
        ("normal", lambda a: 255 * a, "a normal's values are from -1 to 1, all 0 if it is missing."),
        ("image", lambda a: 300 * a, "it must be from 0 to 1, as in the first training image."),
        ("image", lambda a: np.where(a > 0.5, np.nan, a), "has the value nan; it must be from 0 to 1"),
        ("image", lambda a: a.astype(str), "holds <U32, not numbers"),
        ("image", lambda a: a.astype(object), "cannot be read: Object arrays cannot be loaded"),
    ],
)  # fmt: skip
def test_what_an_array_must_not_hold_is_named_with_its_file(own_root, kind, change, words):
    root = own_root("nyuv2")
    file = root / "train" / kind / "4.npy"
    np.save(file, change(array(root, kind, 4)), allow_pickle=True)
    data = NYUv2(str(root))
    data.train[3]
    with pytest.raises(ValueError) as caught:
        data.train[4]
    assert str(caught.value).startswith(f"{file} ") and words in str(caught.value)


def test_depth_that_is_nan_is_none(own_root):
    root = own_root("nyuv2")
    holes = np.where(array(root, "depth", 0) > 2, np.nan, array(root, "depth", 0))
    np.save(root / "train" / "depth" / "0.npy", holes)
    read = NYUv2(str(root), augment=False).train[0][1]["depth"]
    assert torch.equal(read[0].isnan(), torch.from_numpy(np.isnan(holes[..., 0])))


def test_a_folder_without_arrays_is_named(own_root):
    root = own_root("nyuv2")
    for file in (root / "val").rglob("*.npy"):
        file.unlink()
    with pytest.raises(ValueError, match=rf"{root / 'val' / 'image'} holds no <number>.npy"):
        NYUv2(str(root))


def test_cityscapes_has_seven_classes_or_nineteen(fixture_root):
    root = fixture_root("cityscapes")
    for classes in (7, 19):
        data = Cityscapes(str(root), classes=classes, augment=False)
        assert (len(data.train), len(data.val), len(data.test)) == (8, 2, 3)
        np.testing.assert_array_equal(data.train[2][1]["segmentation"], array(root, f"label_{classes}", 2))
        np.testing.assert_allclose(data.train[2][1]["depth"][0], array(root, "depth", 2)[..., 0], rtol=1e-6)
        assert data.metrics("segmentation")["miou"].num_classes == classes
    for arguments, words in (
        ({"classes": 2}, "classes=2 must be 7 or 19"),
        ({"disparity": "x"}, "disparity=x must be"),
    ):
        with pytest.raises(ValueError, match=words):
            Cityscapes(str(root), **arguments)


def test_disparity_is_multiplied_by_the_scale_and_was_divided_in_the_published_code(fixture_root):
    root = fixture_root("cityscapes")
    right, inherited = (Cityscapes(str(root), disparity=way) for way in ("multiplied", "inherited"))
    assert [type(data._read(("train", 0))[1]["depth"]) for data in (right, inherited)] == [Disparity, Depth]
    ratios = set()
    for seed in range(12):
        torch.manual_seed(seed)
        a = right.train[3][1]["depth"]
        torch.manual_seed(seed)
        b = inherited.train[3][1]["depth"]
        ratios.add(round((a[b > 0] / b[b > 0]).mean().item(), 4))
    assert ratios == {1.0, 1.44, 2.25}, "the squares of the scales"


def test_the_metrics_are_those_of_the_papers_in_both_conventions(fixture_root):
    data = NYUv2(str(fixture_root("nyuv2")))
    assert set(data.metrics("segmentation")) == set(segmentation(13, -1)) == {"miou", "pixel_accuracy"}
    assert set(data.metrics("depth")) == set(depth(batch_mean=True)) >= {"abs_err", "rel_err", "abs_err_batch_mean"}
    assert set(data.metrics("normals")) == set(normals(batch_mean=True)) >= {"angle_median", "within_11.25"}
    ignored = data.metrics("segmentation")["pixel_accuracy"]
    labels = data.test[0][1]["segmentation"][None]
    scores = torch.nn.functional.one_hot(labels.clamp(min=0), 13).movedim(-1, 1).float()
    scores[0, :, :3, :3] = scores[0, :, :3, :3].roll(1, 0)  # wrong where there is no label
    ignored.update(scores, labels)
    assert ignored.compute() == 1
