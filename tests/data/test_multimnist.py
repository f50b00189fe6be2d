"""MultiMNIST against its protocol, pixel by pixel."""

import numpy as np
import pytest
import torch
from torchvision.datasets import MNIST

from mtl.data.multimnist import MEAN, STD, MultiMNIST


def shown(data, split, index):
    image, targets = getattr(data, split)[index]
    return ((image[0] * STD + MEAN) * 255).round().numpy(), targets


@pytest.mark.parametrize("validation", [0.25, 0.0])
def test_pairs_are_those_of_the_protocol(fixture_root, validation):
    root = fixture_root("multimnist")
    source = MNIST(str(root), train=True)  # torchvision reads what we wrote
    data = MultiMNIST(str(root), validation=validation)
    count = len(data.train)
    assert count == 24 - 24 * validation and len(data.test) == 6
    digits = source.data.numpy()
    for index in (0, 5, count - 1):
        image, targets = shown(data, "train", index)
        canvases = []
        for right in range(count):
            canvas = np.zeros((36, 36))
            canvas[:28, :28] = digits[index]
            canvas[6:34, 6:34] = np.maximum(canvas[6:34, 6:34], digits[right])
            nearest = (np.arange(28) * 36) // 28
            canvases.append(canvas[nearest][:, nearest])
        (partner,) = [right for right, canvas in enumerate(canvases) if np.array_equal(canvas, image)]
        assert (targets["left"], targets["right"]) == (source.targets[index], source.targets[partner])


def test_held_out_digits_are_the_last_and_never_the_partner_of_others(fixture_root):
    data = MultiMNIST(str(fixture_root("multimnist")), validation=0.25)
    source = MNIST(str(fixture_root("multimnist")), train=True)
    assert torch.equal(data.val._scans[:, 0], source.data[18:]) and torch.equal(
        data.train._scans[:, 0], source.data[:18]
    )


def test_pairs_are_drawn_once_for_all_epochs(fixture_root):
    data = MultiMNIST(str(fixture_root("multimnist")))
    first, again = (data.train.batch([3, 4], epoch)[0] for epoch in (0, 7))
    assert torch.equal(first, again) and not torch.equal(first, data.train.batch([4, 3], 0)[0])


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("train-images-idx3", lambda b: b[:2000], "cannot be read"),
        ("t10k-labels-idx1", lambda b: b[:5], "cannot be read"),
        ("train-labels-idx1", lambda b: b[:-1] + bytes([12]), "has the label 12; accepted are 0 to 9"),
        ("train-labels-idx1", lambda b: b[:4] + (23).to_bytes(4, "big") + b[8:-1], "but [23, 28, 28] is expected"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(own_root, file, change, words):
    root = own_root("multimnist")
    path = root / "MNIST" / "raw" / f"{file}-ubyte"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError) as caught:
        MultiMNIST(str(root))
    assert words in str(caught.value) and str(path.parent) in str(caught.value)
