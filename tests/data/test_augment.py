"""Augmentation against loops over single pixels."""

import math

import numpy as np
import pytest
import torch
from torchvision import tv_tensors

from mtl.data.augment import Depth, Disparity, Normals, ScaleCrop, scale_crop_flip

H, W = 12, 18


@pytest.fixture
def sample():
    rng = np.random.default_rng(0)
    return {
        "image": tv_tensors.Image(torch.from_numpy(rng.random((3, H, W), np.float32))),
        "classes": tv_tensors.Mask(torch.from_numpy(rng.integers(-1, 13, (H, W)))),
        "depth": Depth(torch.from_numpy(rng.random((1, H, W), np.float32))),
        "disparity": Disparity(torch.from_numpy(rng.random((1, H, W), np.float32))),
        "normals": Normals(torch.from_numpy(rng.standard_normal((3, H, W)).astype(np.float32))),
    }


def place(i, size, start, length):
    """The position in the input of the centre of output pixel i."""
    return start + (i + 0.5) * length / size - 0.5


def nearest(maps, top, left, h, w):
    out = np.empty_like(maps)
    for y in range(H):
        for x in range(W):
            out[..., y, x] = maps[..., math.floor(place(y, H, top, h) + 0.5), math.floor(place(x, W, left, w) + 0.5)]
    return out


def bilinear(maps, top, left, h, w):
    out = np.empty_like(maps)
    for y in range(H):
        for x in range(W):
            v = min(max(place(y, H, top, h), top), top + h - 1)  # nothing from outside the crop
            u = min(max(place(x, W, left, w), left), left + w - 1)
            y0, x0 = min(int(v), top + h - 2), min(int(u), left + w - 2)
            a, b = v - y0, u - x0
            out[..., y, x] = (
                (1 - a) * (1 - b) * maps[..., y0, x0]
                + (1 - a) * b * maps[..., y0, x0 + 1]
                + a * (1 - b) * maps[..., y0 + 1, x0]
                + a * b * maps[..., y0 + 1, x0 + 1]
            )
    return out


@pytest.mark.parametrize(("scale", "box"), [(1.2, (1, 3, 10, 15)), (1.5, (4, 0, 8, 12)), (1.5, (0, 6, 8, 12))])
def test_scaling_is_that_of_loops(sample, scale, box):
    crop = ScaleCrop()
    params = {"scale": scale, "size": [H, W], "box": box}
    out = {name: crop.transform(value, params).numpy() for name, value in sample.items()}
    arrays = {name: value.numpy() for name, value in sample.items()}
    np.testing.assert_array_equal(out["classes"], nearest(arrays["classes"], *box))
    np.testing.assert_allclose(out["depth"], nearest(arrays["depth"], *box) / scale, rtol=1e-6)
    np.testing.assert_allclose(out["disparity"], nearest(arrays["disparity"], *box) * scale, rtol=1e-6)
    np.testing.assert_allclose(out["image"], bilinear(arrays["image"], *box), atol=1e-5)
    np.testing.assert_allclose(out["normals"], bilinear(arrays["normals"], *box), atol=1e-5)
    # Negative controls: another box, depth that is not divided.
    assert not np.array_equal(out["classes"], nearest(arrays["classes"], 2, 2, *box[2:]))
    assert not np.allclose(out["depth"], nearest(arrays["depth"], *box), rtol=1e-2)


def test_what_is_drawn_is_a_factor_of_the_scales_and_a_box_inside(sample):
    torch.manual_seed(0)
    drawn = [ScaleCrop().make_params(list(sample.values())) for _ in range(300)]
    assert {params["scale"] for params in drawn} == {1.0, 1.2, 1.5}
    for params in drawn:
        top, left, h, w = params["box"]
        assert (h, w) == (int(H / params["scale"]), int(W / params["scale"]))
        assert 0 <= top <= H - h and 0 <= left <= W - w
    corners = {params["box"][:2] for params in drawn if params["scale"] == 1.5}
    assert {(0, 0), (4, 6)} <= corners, "also the first and the last place"


def test_a_flip_turns_everything_and_negates_the_normals_x(sample):
    flip = scale_crop_flip().transforms[1]
    seen = set()
    for seed in range(10):
        torch.manual_seed(seed)
        out = flip(sample)
        flipped = not torch.equal(out["image"], sample["image"])
        seen.add(flipped)
        for name, value in sample.items():
            expected = value.numpy()[..., ::-1] if flipped else value.numpy()
            if flipped and name == "normals":
                assert not np.array_equal(out[name].numpy(), expected)  # the negative control
                expected = expected * np.array([-1, 1, 1], np.float32)[:, None, None]
            np.testing.assert_array_equal(out[name].numpy(), expected, err_msg=name)
            assert type(out[name]) is type(value), "a second transform must know it, too"
    assert seen == {True, False}


@pytest.mark.parametrize("axis", [1, 2])
def test_image_and_targets_stay_in_register(axis):
    """Pixels whose values are their positions: image and depth differ by half a pixel at most."""
    place = torch.arange(60.0).view((60, 1) if axis == 1 else (1, 60)).expand(60, 60)
    image, depth = tv_tensors.Image(place.expand(3, 60, 60) / 60), Depth(place[None] + 1)
    torch.manual_seed(1)
    seen = set()
    for _ in range(30):
        out, target = scale_crop_flip()(image, depth)
        steps = out[0].diff(dim=axis - 1).abs().median() * 60
        scale = min((1, 1.2, 1.5), key=lambda s: abs(steps - 1 / s))
        apart = (out[0] * 60) - (target[0] * scale - 1)
        assert apart.abs().max() < 0.51
        shifted = (out[0].roll(1, axis - 1) * 60) - (target[0] * scale - 1)
        assert shifted.abs().max() > 0.7  # the negative control
        seen.add(scale)
    assert seen == {1, 1.2, 1.5}


def test_scales_below_one_are_refused():
    with pytest.raises(ValueError, match=r"scales=\[0.5\] must be a list of numbers, each 1 or more"):
        ScaleCrop([0.5])
