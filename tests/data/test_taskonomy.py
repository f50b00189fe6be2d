"""Taskonomy's PNG files, decoded as in the code of task grouping."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image

from mtl.data.taskonomy import Taskonomy


def png(root, kind, building, view, domain=None):
    return np.array(Image.open(root / kind / building / f"point_{view}_view_0_domain_{domain or kind}.png"))


def test_it_is_what_its_files_hold(fixture_root):
    root = fixture_root("taskonomy")
    data = Taskonomy(str(root), image_size=24, validation=0.25, augment=False)  # the files' own size
    assert (len(data.train), len(data.val), len(data.test)) == (9, 3, 6)
    for split, index, building, view in (("train", 4, "house1", 1), ("val", 2, "house3", 2), ("test", 5, "hut1", 2)):
        _, targets = getattr(data, split)[index]
        depth = png(root, "depth_zbuffer", building, view)
        assert depth.dtype == np.uint16 and (depth >= 2**13).sum() == 16
        known = depth < 2**13
        np.testing.assert_allclose(
            targets["depth_zbuffer"][0].numpy()[known], (depth[known] - 1500.0) / 1000, rtol=1e-5
        )
        assert torch.equal(targets["depth_zbuffer"][0].isnan(), torch.from_numpy(~known))
        labels = png(root, "segment_semantic", building, view, "segmentsemantic")
        np.testing.assert_array_equal(targets["segment_semantic"], labels)
        normals = np.moveaxis(2 * (png(root, "normal", building, view) / 255) - 1, 2, 0) * known
        np.testing.assert_allclose(targets["normal"], normals, atol=1e-6)
        for kind, shift, scale in (("keypoints2d", 50, 100), ("edge_texture", 718, 1070)):
            raw = png(root, kind, building, view).astype(float)
            np.testing.assert_allclose(targets[kind][0], (raw - shift) / scale, atol=1e-5)
            assert not np.allclose(targets[kind][0], raw)


def test_unknown_depth_does_not_spread_when_it_is_resized(fixture_root):
    small = Taskonomy(str(fixture_root("taskonomy")), image_size=12, augment=False)
    _, targets = small.train[0]
    assert targets["depth_zbuffer"].isnan().sum() == 4  # of 16, as the side is halved
    assert all(targets[kind].shape[-2:] == (12, 12) for kind in small.targets)
    assert not any(targets[kind].isnan().any() for kind in small.targets if kind != "depth_zbuffer")


def test_both_names_of_the_segmentation_are_read(own_root):
    root = own_root("taskonomy")
    before = Taskonomy(str(root), image_size=24, augment=False).train[0][1]["segment_semantic"]
    for file in (root / "segment_semantic").rglob("*.png"):
        file.rename(file.with_name(file.name.replace("segmentsemantic", "segment_semantic")))
    assert torch.equal(before, Taskonomy(str(root), image_size=24, augment=False).train[0][1]["segment_semantic"])


def test_a_flip_negates_the_normals_x(fixture_root):
    plain, drawn = (Taskonomy(str(fixture_root("taskonomy")), image_size=24, augment=a) for a in (False, True))
    seen = set()
    for seed in range(8):
        torch.manual_seed(seed)
        image, targets = drawn.train[0]
        expected, labels = plain.train[0]
        flipped = not torch.equal(image, expected)
        seen.add(flipped)
        x = labels["normal"][0]
        assert torch.equal(targets["normal"][0], -x.flip(-1) if flipped else x)
    assert seen == {True, False}


def test_listed_buildings_that_are_not_there_are_passed_over(own_root, caplog):
    root = own_root("taskonomy")
    (root / "train_models.txt").write_text("house0\nhouse1\nelsewhere\n")
    caplog.set_level(logging.INFO, "mtl")
    data = Taskonomy(str(root), image_size=24, validation=0.5)
    assert (len(data.train), len(data.val)) == (3, 3) and "train_models.txt: 2 of 3 buildings have files" in caplog.text
    (root / "train_models.txt").write_text("elsewhere\n")
    with pytest.raises(ValueError, match=r"train_models.txt lists 1 buildings, but .*rgb has none"):
        Taskonomy(str(root))


@pytest.mark.parametrize(
    ("kind", "array", "words"),
    [
        (
            "segment_semantic",
            np.full((24, 24), 18, np.uint8),
            "has the label 18; accepted are 0 to 17, and 0 for a missing label.",
        ),
        ("depth_zbuffer", np.zeros((24, 23), np.uint16), "has the shape [24, 23], but [24, 24] is expected."),
        ("depth_zbuffer", np.zeros((24, 24), np.uint8), "cannot be read: its mode is L, but I;16 or I;16B or I is exp"),
        ("keypoints2d", np.zeros((24, 24, 3), np.uint8), "cannot be read: its mode is RGB, but I;16"),
        ("segment_semantic", np.zeros((24, 24, 3), np.uint8), "cannot be read: its mode is RGB, but L or P or"),
        ("normal", np.zeros((24, 24), np.uint8), "cannot be read: its mode is L, but RGB is expected"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(own_root, kind, array, words):
    root = own_root("taskonomy")
    (file,) = (root / kind / "house0").glob("point_1_view_0_*.png")
    Image.fromarray(array).save(file)
    data = Taskonomy(str(root), image_size=24)
    with pytest.raises(ValueError) as caught:
        data.train[1]
    assert str(caught.value).startswith(f"{file} {words}")
