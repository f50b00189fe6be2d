import pytest
import torch
from sklearn.datasets import load_digits

from mtl.data.digits import MEAN, STD, Digits


@pytest.fixture(scope="module")
def digits():
    return Digits(image_size=10)  # the canvas itself: nothing is resized


def pixels(split):
    return {tuple(scan.flatten().tolist()) for scan in split._scans}


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
