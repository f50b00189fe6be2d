import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from mtl.data.digits import MEAN, STD, Digits, _load, _stratified_halves


@pytest.fixture(scope="module")
def digits():
    return Digits(image_size=10)  # the canvas itself: nothing is resized


def pixels(split):
    return {tuple(scan.flatten().tolist()) for scan in split._scans}


def test_the_scans_and_their_split_are_scikit_learns(digits):
    scans, labels = load_digits(return_X_y=True)
    own_scans, own_labels = _load()
    assert np.array_equal(own_scans, scans) and np.array_equal(own_labels, labels)
    assert own_scans.dtype == scans.dtype and own_labels.dtype == labels.dtype
    train, rest = train_test_split(np.arange(len(labels)), train_size=0.7, random_state=0, stratify=labels)
    val, test = train_test_split(rest, train_size=0.5, random_state=0, stratify=labels[rest])
    for split, indices in ((digits.train, train), (digits.val, val), (digits.test, test)):
        assert np.array_equal(split._labels, labels[indices])
        assert np.array_equal(split._scans.flatten(1) * 16, scans[indices])


@pytest.mark.parametrize("share", [0.1, 0.33, 0.5, 0.9])
def test_a_stratified_half_is_scikit_learns_for_any_labels(share):
    labels = np.random.default_rng(0).integers(0, 7, 200)
    expected = train_test_split(np.arange(200), train_size=share, random_state=0, stratify=labels)
    for own, other in zip(_stratified_halves(labels, share), expected, strict=True):
        assert np.array_equal(own, other)


def test_the_data_come_without_importing_scikit_learn():
    script = "import sys; from mtl.data.digits import Digits; Digits(); print({'sklearn', 'pandas'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "set()\n"


def test_the_source_digits_are_split_before_they_are_paired(digits):
    train, val, test = (pixels(split) for split in (digits.train, digits.val, digits.test))
    assert not train & val and not train & test and not val & test
    assert (len(digits.train), len(digits.val), len(digits.test)) == (1257 * 8, 270 * 8, 270 * 8)


def test_the_brighter_pixel_wins_where_the_digits_overlap(digits):
    image, targets = digits.val[5]
    scans, labels = load_digits(return_X_y=True)
    image = ((image[0] * STD + MEAN) * 16).round()
    scans = torch.tensor(scans).reshape(-1, 8, 8)

    def shown(label, corner):
        """Which scans of that class the image holds at the corner: it is at least as bright everywhere."""
        region = image[corner : corner + 8, corner : corner + 8]
        return [s for s, y in zip(scans, labels, strict=True) if y == label and (region >= s - 1e-3).all()]

    lefts, rights = shown(targets["left"], 0), shown(targets["right"], 2)
    canvases = []
    for left in lefts:
        for right in rights:
            canvas = torch.zeros(10, 10, dtype=torch.float64)
            canvas[:8, :8] = left
            canvas[2:, 2:] = torch.maximum(canvas[2:, 2:], right)
            canvases.append(torch.equal(canvas, image.double()))
    assert any(canvases)


def test_the_further_targets_follow_from_the_two_digits(digits):
    _, t = digits.train.batch(list(range(200)), epoch=0)
    assert torch.equal(t["sum"], t["left"] + t["right"])
    assert torch.equal(t["parity"], t["sum"] % 2)
    assert torch.equal(t["left_parity"], t["left"] % 2) and torch.equal(t["right_parity"], t["right"] % 2)
    assert set(t) == set(digits.targets)


def test_pairs_are_a_function_of_seed_epoch_and_index(digits):
    images, targets = digits.train.batch([3, 4, 5], epoch=2)
    again, _ = digits.train.batch([5, 3], epoch=2)
    assert torch.equal(again[0], images[2]) and torch.equal(again[1], images[0])
    assert not torch.equal(digits.train.batch([3, 4, 5], epoch=3)[0], images)
    assert not torch.equal(Digits(image_size=10, seed=1).train.batch([3, 4, 5], epoch=2)[0], images)
    sample, target = digits.train[4]
    assert torch.equal(sample, digits.train.batch([4], epoch=0)[0][0]) and target["left"] == targets["left"][1]


def test_validation_and_test_pairs_are_the_same_for_every_seed_and_epoch(digits):
    other = Digits(image_size=10, seed=7)
    for split in ("val", "test"):
        a = getattr(digits, split).batch(list(range(50)), epoch=0)[0]
        b = getattr(other, split).batch(list(range(50)), epoch=4)[0]
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 must be 1 or more"),
        ({"image_size": -1}, "image_size=-1 must be 1 or more"),
        ({"pairs_per_digit": 0}, "pairs_per_digit=0 must be 1 or more"),
        ({"offset": 9}, "offset=9 must be from 0"),
    ],
)
def test_what_does_not_make_an_image_is_named(argument, message):
    with pytest.raises(ValueError, match=message):
        Digits(**argument)
