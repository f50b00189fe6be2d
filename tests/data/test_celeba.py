"""CelebA's lists and images."""

import numpy as np
import pytest
import torch
from PIL import Image

from mtl.data.celeba import ATTRIBUTES, IMAGES, LABELS, PARTITION, CelebA
from mtl.data.preprocess import MEAN, STD


def test_it_is_what_its_files_hold(fixture_root):
    root = fixture_root("celeba")
    data = CelebA(str(root), image_size=36)
    assert (len(data.train), len(data.val), len(data.test)) == (10, 3, 3)
    lines = (root / LABELS).read_text().splitlines()
    assert lines[1].split() == list(ATTRIBUTES) and len(ATTRIBUTES) == len(data.targets) == 40
    for split, index, number in (("train", 4, 5), ("val", 0, 11), ("test", 2, 16)):
        image, targets = getattr(data, split)[index]
        name, *values = lines[number + 1].split()
        assert name == f"{number:06d}.jpg"
        assert {n: t.item() for n, t in targets.items()} == {
            n: (int(v) + 1) / 2 for n, v in zip(ATTRIBUTES, values, strict=True)
        }
        assert all(target.shape == (1,) for target in targets.values())
        pixels = np.array(Image.open(root / IMAGES / name).convert("RGB")) / 255
        seen = image.numpy() * np.array(STD)[:, None, None] + np.array(MEAN)[:, None, None]
        assert image.shape == (3, 36, 36)
        np.testing.assert_allclose(seen.mean((1, 2)), pixels.mean((0, 1)), atol=0.02)


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        (LABELS, "Bald", "Hairless", "its second line must be the 40 attributes' names"),
        (LABELS, "000002.jpg -1", "000002.jpg 2", "has 2 for 5_o_Clock_Shadow of 000002.jpg; it must be -1 or 1"),
        (PARTITION, "000003.jpg 0", "000003.jpg 3", "has 3 for 000003.jpg; it must be 0 (train), 1 (val) or 2 (test)"),
        (PARTITION, "000003.jpg 0", "999999.jpg 0", "lists 999999.jpg, which is missing in Anno/list_attr_celeba.txt"),
        (PARTITION, ".jpg 2", ".jpg 1", "has no image of the split 2 (test)"),
    ],
)
def test_what_is_wrong_with_a_list_is_named(own_root, file, old, new, words):
    root = own_root("celeba")
    text = (root / file).read_text()
    assert old in text
    (root / file).write_text(text.replace(old, new))
    with pytest.raises(ValueError) as caught:
        CelebA(str(root))
    assert words in str(caught.value) and str(caught.value).startswith(f"{root / file}")


def test_an_image_that_is_not_there_is_named_when_it_is_read(own_root):
    root = own_root("celeba")
    (root / IMAGES / "000001.jpg").unlink()
    data = CelebA(str(root))
    with pytest.raises(ValueError, match=r"000001.jpg does not exist"):
        data.train[0]


def test_the_metrics_are_f1_and_accuracy(fixture_root):
    metrics = CelebA(str(fixture_root("celeba"))).metrics("Young")
    for metric in metrics.values():
        metric.update(torch.tensor([[2.0], [1.0], [-1.0]]), torch.tensor([[1.0], [0.0], [0.0]]))
    assert {name: metric.compute().item() for name, metric in metrics.items()} == pytest.approx(
        {"f1": 2 / 3, "accuracy": 2 / 3}
    )
