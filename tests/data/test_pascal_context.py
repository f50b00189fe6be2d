"""PASCAL-Context's five targets against a plain reading of the files."""

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from mtl.data.pascal_context import KNOWN_NORMALS, PARTS, PascalContext

H, W, SIDE = 20, 28, 32


def label_map(root, name):
    return scipy.io.loadmat(root / "pascal-context" / "trainval" / f"{name}.mat")["LabelMap"]


def parts(root, name):
    """By the positions of the cells and not by their names, as in the official code."""
    classes = np.zeros((H, W))
    for thing in scipy.io.loadmat(root / "human_parts" / f"{name}.mat")["anno"][0][0][1][0]:
        if thing[1][0][0] == 15 and len(thing[3]):
            for part in thing[3][0]:
                classes[part[1].astype(bool)] = {"head": 1, "torso": 2, "lfoot": 6}[str(part[0][0])]
    return classes if classes.any() else np.full((H, W), 255)


@pytest.mark.parametrize(("index", "folder"), [(0, "VOC12"), (3, "pascal-context"), (4, "VOC12")])
def test_it_is_what_its_files_hold(fixture_root, index, folder):
    root = fixture_root("pascal_context")
    data = PascalContext(str(root), image_size=SIDE, augment=False)
    assert (len(data.train), len(data.val), len(data.test)) == (7, 1, 3)
    name = f"2008_0{index:05d}"
    image, targets = data.train[index]
    assert image.shape == (3, SIDE, SIDE) and all(t.shape[-2:] == (SIDE, SIDE) for t in targets.values())
    inside = {key: target[..., :H, :W].numpy() for key, target in targets.items()}
    np.testing.assert_array_equal(
        inside["segmentation"], np.array(Image.open(root / "semseg" / folder / f"{name}.png"))
    )
    np.testing.assert_array_equal(inside["human_parts"], parts(root, name))
    assert (inside["human_parts"] == 255).all() == (index % 2 == 1)
    classes = label_map(root, name)
    coded = np.array(Image.open(root / "normals_distill" / f"{name}.png")) / 127.5 - 1
    known = np.isin(classes, KNOWN_NORMALS)
    assert 0 < known.mean() < 1
    np.testing.assert_allclose(inside["normals"], np.moveaxis(coded * known[..., None], 2, 0), atol=1e-6)
    salient = np.array(Image.open(root / "sal_distill" / f"{name}.png")) / 255 > 0.5
    np.testing.assert_array_equal(inside["saliency"][0], salient)
    edges = np.zeros((H, W))
    for y, x in np.ndindex(H, W):
        below, right = classes[min(y + 1, H - 1), x], classes[y, min(x + 1, W - 1)]
        edges[y, x] = classes[y, x] != below or classes[y, x] != right
    np.testing.assert_array_equal(inside["edges"][0], edges)


def test_there_are_no_labels_beside_the_image(fixture_root):
    _, targets = PascalContext(str(fixture_root("pascal_context")), image_size=SIDE, augment=False).train[0]
    outside = torch.ones(SIDE, SIDE, dtype=torch.bool)
    outside[:H, :W] = False
    assert (targets["segmentation"][outside] == 255).all() and (targets["human_parts"][outside] == 255).all()
    assert (targets["normals"][:, outside] == 0).all()
    assert targets["saliency"][0, outside].isnan().all() and targets["edges"][0, outside].isnan().all()
    assert not targets["edges"][0, ~outside].isnan().any()


def test_parts_are_those_of_the_field():
    assert sorted(set(PARTS.values())) == [1, 2, 3, 4, 5, 6] and len(PARTS) == 24
    assert PARTS["lhand"] == PARTS["rlarm"] != PARTS["ruarm"] and PARTS["neck"] == PARTS["torso"]


@pytest.mark.parametrize(
    ("folder", "array", "words"),
    [
        (
            "semseg/VOC12",
            np.full((H, W), 21, np.uint8),
            "has the label 21; accepted are 0 to 20, and 255 for a missing label.",
        ),
        ("sal_distill", np.zeros((H, W - 1), np.uint8), "has the shape [20, 27], but [20, 28] is expected."),
        ("normals_distill", np.zeros((H, W), np.uint8), "cannot be read: its mode is L, but RGB is expected"),
        ("sal_distill", np.eye(H, W, dtype=np.uint16), "cannot be read: its mode is I;16, but L is expected"),
        ("sal_distill", np.eye(H, W, dtype=np.uint8), "has the values 0 and 1 only; a saliency map is grey from 0 to"),
        ("JPEGImages", np.zeros((H, SIDE + 1, 3), np.uint8), "has 20×33 pixels, more than data.image_size=32."),
    ],
)
def test_what_is_wrong_with_a_file_is_named(own_root, folder, array, words):
    root = own_root("pascal_context")
    file = root / folder / f"2008_000000.{'jpg' if folder == 'JPEGImages' else 'png'}"
    Image.fromarray(array).save(file)
    with pytest.raises(ValueError) as caught:
        PascalContext(str(root), image_size=SIDE).train[0]
    assert str(caught.value).startswith(f"{file} {words}")


def test_a_part_that_the_field_does_not_know_is_named(own_root):
    root = own_root("pascal_context")
    file = root / "human_parts" / "2008_000000.mat"
    anno = scipy.io.loadmat(file)["anno"]
    anno[0][0][1][0][0][3][0][0][0] = "tail"
    scipy.io.savemat(file, {"anno": anno})
    with pytest.raises(ValueError, match=rf"{file} cannot be read: 'tail'"):
        PascalContext(str(root), image_size=SIDE).train[0]
