"""Every mode of Pillow as RGB, against values worked out by hand; and the files of which Pillow hides something."""

import colorsys
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from mtl.data import pixels
from mtl.data.files import read_image
from mtl.data.pixels import to_rgb

A, B, DULL = (200, 30, 60), (20, 180, 220), (120, 140, 90)
WHITE = (255, 255, 255)


def half(colour, alpha):
    """A colour over white."""
    return tuple((alpha * c + (255 - alpha) * 255) / 255 for c in colour)


def lab(*colours):
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    image = Image.new("RGB", (2, 1))
    image.putdata(colours)
    return ImageCms.applyTransform(image, ImageCms.buildTransform(*profiles, "RGB", "LAB")).tobytes()


def hsv(*colours):
    return bytes(round(255 * v) for c in colours for v in colorsys.rgb_to_hsv(*(x / 255 for x in c)))


def ycbcr(*colours):
    """By ITU-R BT.601, as JPEG has it."""
    matrix = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
    return (np.array(colours) @ matrix.T + [0, 128, 128]).round().astype(np.uint8).tobytes()


def inks(*colours):
    return bytes(v for c in colours for v in (*(255 - x for x in c), 0))


def words(dtype, *values):
    return np.array(values, dtype).tobytes()


GREYS = [(0, 0, 0), tuple([255 * 30000 / 65535] * 3)]
# The mode, the bytes of two pixels, and their colours, from 0 to 255.
MODES = [
    ("1", b"\x80", [WHITE, (0, 0, 0)]),
    ("L", bytes([7, 200]), [(7, 7, 7), (200, 200, 200)]),
    ("RGB", bytes([*A, *B]), [A, B]),
    ("RGBX", bytes([*A, 0, *B, 9]), [A, B]),
    ("RGBA", bytes([*A, 0, *B, 255]), [WHITE, B]),
    ("RGBA", bytes([*A, 128, *B, 64]), [half(A, 128), half(B, 64)]),
    ("RGBa", bytes([*(c * 128 // 255 for c in A), 128, *B, 255]), [half(A, 128), B]),
    ("LA", bytes([7, 0, 200, 128]), [WHITE, half((200,) * 3, 128)]),
    ("La", bytes([100, 128, 200, 255]), [half((199,) * 3, 128), (200,) * 3]),
    ("CMYK", inks(A, B), [A, B]),
    ("YCbCr", ycbcr(A, B), [A, B]),
    ("HSV", hsv(A, B), [A, B]),
    ("LAB", lab(A, DULL), [A, DULL]),
    ("I;16", words("<u2", 0, 30000), GREYS),
    ("I;16L", words("<u2", 0, 30000), GREYS),
    ("I;16B", words(">u2", 0, 30000), GREYS),
    ("I;16N", words("=u2", 0, 30000), GREYS),
    ("F", words("=f4", 0, 0.25), [(0, 0, 0), (63.75,) * 3]),
    ("F", words("=f4", 0, 255), "mode F has the value 255"),
    ("F", words("=f4", -0.5, 1), "mode F has the value -0.5"),
    ("F", words("=f4", 0, np.nan), "mode F has the value nan"),
    ("I", words("=i4", 0, 1000), "mode I, of 32 bits or signed integers, has no range"),
]


def colours_of(pixels):
    """Pixels of either type on the scale from 0 to 255."""
    assert pixels.dtype in (np.uint8, np.float32) and pixels.shape[2] == 3
    return pixels[0].astype(float) * (255 if pixels.dtype == np.float32 else 1)


@pytest.mark.parametrize(("mode", "content", "expected"), MODES, ids=[f"{m}-{i}" for i, (m, *_) in enumerate(MODES)])
def test_every_mode_is_scaled_by_its_own_range_or_refused_by_name(mode, content, expected):
    image = Image.frombytes(mode, (2, 1), content)
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            to_rgb(image)
        return
    np.testing.assert_allclose(colours_of(to_rgb(image)), expected, atol=2.5)  # of rounding to 8 bits on the way


def test_no_mode_of_pillow_is_without_a_test():
    assert {"P", "PA", *(mode for mode, *_ in MODES)} >= {*Image.MODES}


@pytest.mark.parametrize("mode", ["P", "PA"])
def test_a_palette_shows_its_colours_and_hides_those_that_are_transparent(mode):
    image = Image.frombytes("P", (2, 1), bytes([1, 0]))
    image.putpalette([*A, *B])
    if mode == "PA":
        image = image.convert("PA")
        image.putalpha(Image.frombytes("L", (2, 1), bytes([255, 0])))
        expected = [B, WHITE]
    else:
        np.testing.assert_array_equal(colours_of(to_rgb(image)), [B, A])
        image.info["transparency"] = 1
        expected = [WHITE, A]
    np.testing.assert_array_equal(colours_of(to_rgb(image)), expected)


# ---------------------------------------------------------------------------------------------- files


def png(values, colour_type, bits=16, *chunks):
    """A PNG file by its specification, of integers ``[H, W, C]``."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = values.shape[:2]
    lines = b"".join(b"\0" + row.astype(">u2" if bits == 16 else np.uint8).tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    body = b"".join(chunk(*c) for c in ((b"IHDR", header), *chunks, (b"IDAT", zlib.compress(lines)), (b"IEND", b"")))
    return b"\x89PNG\r\n\x1a\n" + body


def tiff(values, dtype, photometric=1, sample_format=1):
    """A TIFF file of one grey channel by its specification."""
    data = np.asarray(values, dtype).tobytes()
    height, width = np.shape(values)
    bits, offset = 8 * np.dtype(dtype).itemsize, 8 + 2 + 10 * 12 + 4
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: offset, 277: 1, 278: height,
            279: len(data), 339: sample_format}  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0) + data


RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_colours_of_16_bits_are_read_by_their_range_and_said_once(tmp_path, caplog, monkeypatch, colour_type, channels):
    monkeypatch.setattr(pixels, "_WARNED", set())
    values = RNG.integers(0, 65536, (3, 5, channels))
    scaled = values / 65535
    colour, alpha = (scaled[..., :-1], scaled[..., -1:]) if channels in (2, 4) else (scaled, 1)
    expected = np.broadcast_to(colour * alpha + (1 - alpha), (3, 5, 3))
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(png(values, colour_type))
        image = read_image(tmp_path / name).permute(1, 2, 0).numpy() / 255
        np.testing.assert_allclose(image, expected, atol=2.5 / 255)
    (record,) = caplog.records
    assert f"{tmp_path / 'a.png'}, PNG of mode RGB" in record.getMessage() and "the upper 8" in record.getMessage()


def test_pictures_of_12_bits_in_16_differ(tmp_path):
    for i, level in enumerate((1000, 3000)):
        Image.fromarray(np.full((4, 4), level, np.uint16)).save(tmp_path / f"{i}.png")
    dark, bright = (read_image(tmp_path / f"{i}.png").mean().item() for i in range(2))
    assert dark == pytest.approx(1000 / 65535) and bright == pytest.approx(3000 / 65535)


@pytest.mark.parametrize(
    ("content", "grey"),
    [
        (tiff([[7, 200]], "u1"), [7 / 255, 200 / 255]),
        (tiff([[7, 200]], "u1", photometric=0), [248 / 255, 55 / 255]),
        (tiff([[7, 3000]], "<u2"), [7 / 65535, 3000 / 65535]),
        (tiff([[7, 3000]], "<u2", photometric=0), [1 - 7 / 65535, 1 - 3000 / 65535]),
        (tiff([[0, 0.5]], "<f4", sample_format=3), [0, 0.5]),
        (b"P5 2 1 4095\n" + words(">u2", 4095, 1000), [1, 1000 / 4095]),
        (b"P5 2 1 255\n" + bytes([7, 200]), [7 / 255, 200 / 255]),
        (png(np.array([[[7], [500]]]), 0, 16, (b"tRNS", words(">u2", 500))), [7 / 65535, 1]),
        (png(np.array([[[7], [50]]]), 0, 8, (b"tRNS", words(">u2", 50))), [7 / 255, 1]),
        (png(np.array([[[*A], [*B]]]), 2, 8, (b"tRNS", words(">u2", *B))), [None, 1]),
        (tiff([[-7, 20]], "i1", sample_format=2), "mode L of signed integers"),
        (tiff([[7, 3000]], "<i2", sample_format=2), "mode I, of 32 bits or signed integers"),
        (tiff([[7, 3000]], "<u4"), "mode I, of 32 bits or signed integers"),
        (tiff([[7, 3000]], "<f4", sample_format=3), "mode F has the value 7; floats have no range"),
    ],
)
def test_files_that_pillow_alone_reads_wrong(tmp_path, content, grey):
    file = tmp_path / "x.image"
    file.write_bytes(content)
    if isinstance(grey, str):
        with pytest.raises(ValueError, match=rf"{file} cannot be read: {grey}"):
            read_image(file)
        return
    image = read_image(file)
    found = image.numpy().astype(float) / (1 if image.is_floating_point() else 255)
    for column, value in enumerate(grey):
        if value is not None:
            np.testing.assert_allclose(found[:, 0, column], value, atol=1e-5)


def test_a_file_of_several_pictures_is_refused_and_a_thumbnail_is_none(tmp_path):
    frames = [Image.new("L", (4, 4), level) for level in (10, 200)]
    for suffix in ("gif", "tif", "webp", "png"):
        frames[0].save(tmp_path / f"two.{suffix}", save_all=True, append_images=frames[1:])
        with pytest.raises(ValueError, match=rf"two.{suffix} cannot be read: it has 2 frames"):
            read_image(tmp_path / f"two.{suffix}")
        frames[0].save(tmp_path / f"one.{suffix}")
        assert read_image(tmp_path / f"one.{suffix}").float().mean() == pytest.approx(10, abs=1)
    small = frames[1].resize((2, 2))
    small.encoderinfo = {"tiffinfo": {254: 1}}
    frames[0].save(tmp_path / "thumbnail.tif", save_all=True, append_images=[small])
    assert read_image(tmp_path / "thumbnail.tif").float().mean() == 10


@pytest.mark.parametrize("deep", [False, True])
def test_every_depth_is_turned_upright(tmp_path, deep):
    exif = Image.Exif()
    exif[0x0112] = 6
    values = np.arange(6, dtype=np.uint16 if deep else np.uint8).reshape(2, 3)
    Image.fromarray(values).save(tmp_path / "x.png", exif=exif)
    scale = 65535 if deep else 1
    np.testing.assert_allclose(read_image(tmp_path / "x.png")[0] * scale, np.rot90(values, -1), atol=1e-3)


def test_what_has_8_bits_and_is_opaque_is_as_pillow_converts_it(tmp_path):
    noise = RNG.integers(0, 256, (5, 6, 3), np.uint8)
    for image in (Image.fromarray(noise), Image.fromarray(noise).quantize(16), Image.fromarray(noise).convert("L")):
        opaque = image.convert("RGBA")
        for own in (image, opaque):
            buffer = io.BytesIO()
            own.save(buffer, "png")
            (tmp_path / "x.png").write_bytes(buffer.getvalue())
            found = read_image(tmp_path / "x.png").permute(1, 2, 0)
            np.testing.assert_array_equal(found, np.array(image.convert("RGB")))
