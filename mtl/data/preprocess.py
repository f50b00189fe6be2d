"""What turns one raw input into the tensors that a model was evaluated on: of the splits, and of new inputs alike.

A data set's ``preprocess`` is an object with

- ``preprocess(raw)``: one raw input of the user -> the inputs of one sample, exactly as the evaluation's splits give
  them, without a batch axis; ValueError with what is accepted for anything else;
- ``takes``: what a raw input is: ``image`` (a path or a PIL image), ``row`` (a dict, the columns of a table), ``text``
  (a string, or a path of a file), ``tensor``, or a word of its own;
- ``state()``: plain values with a ``_target_``, of which the constructor makes the same object again. They stand in
  the checkpoint, so that :func:`mtl.load` predicts without the data's files; see mtl.data.metadata;
- ``batch(rows)``, optional: a pandas DataFrame of many rows -> the inputs of as many samples, the batch axis first;
- ``columns``, optional, where it takes rows: the names of the columns that it needs.

It is built from plain values alone, and reads no file but the raw input itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from mtl.data.folder import errors_named_by
from mtl.data.pixels import to_rgb
from mtl.errors import require

# Pixel statistics of ImageNet, for backbones that do not say which they want.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FITS = ("resize", "pad", "exact")
GREY = ("1", "L", "I", "F")  # Pillow's modes of one channel, beside those that begin with I;16
BYTES = 256

Codes = NDArray[np.int32]


class ImagePreprocess:
    """An image as the tensor ``[channels, *size]``, float32, normalised by the channels' ``mean`` and ``std``.

    ``fit`` says how an image of another height and width than ``size`` becomes one of it: ``resize`` scales both sides
    (bilinear, antialiased), ``pad`` continues a smaller one with black on the right and below, ``exact`` refuses it.
    With one channel only greys are accepted; with three, greys become colours as in training, see mtl.data.pixels.

    A raw input is a path of an image or of a .npy array, a PIL image, or an array ``[H, W]`` or ``[H, W, 3]`` of
    numbers from 0 to ``brightest``; None is 255 for integers and 1 for others. ValueError for another mode, shape or
    range, with the path where there is one.
    """

    takes = "image"

    def __init__(
        self,
        size: Sequence[int],
        fit: str = "resize",
        channels: int = 3,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
        brightest: float | None = None,
    ) -> None:
        require("fit", fit, f"one of {', '.join(FITS)}", fit in FITS)
        require("channels", channels, "1 or 3", channels in (1, 3))
        self.size, self.fit, self.channels, self.brightest = list(size), fit, channels, brightest
        self.normalize = v2.Normalize(list(mean), list(std))
        self.resize = v2.Resize(self.size)

    def __call__(self, raw: Any) -> Tensor:
        """The tensor of one raw input."""
        image = self.read(raw)
        with _named(raw):
            return self.finish(self.fitted(image))

    def state(self) -> dict[str, Any]:
        """The constructor's arguments, with the normalisation as it is now."""
        return {
            "_target_": "mtl.data.preprocess.ImagePreprocess",
            "size": self.size,
            "fit": self.fit,
            "channels": self.channels,
            "mean": list(self.normalize.mean),
            "std": list(self.normalize.std),
            "brightest": self.brightest,
        }

    def read(self, raw: Any) -> tv_tensors.Image:
        """A raw input as ``[channels, H, W]``, uint8, or float32 from 0 to 1."""
        if isinstance(raw, Image.Image):
            return self._of_picture(raw)
        if isinstance(raw, str | Path) and Path(raw).suffix.lower() != ".npy":
            with errors_named_by(Path(raw)), Image.open(raw) as image:
                return self._of_picture(image)
        array = raw
        if isinstance(raw, str | Path):
            with errors_named_by(Path(raw)):
                array = np.load(raw, allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError(f"an image must be a path, a PIL image or an array, but it is a {type(raw).__name__}.")
        with _named(raw):
            return self.of_array(array)

    def of_array(self, array: NDArray[Any]) -> tv_tensors.Image:
        """An array ``[H, W]`` or ``[H, W, 3]`` as ``[channels, H, W]``, float32 from 0 to 1."""
        if array.dtype.kind not in "fiub" or array.shape[2:] not in ((), (self.channels,)) or array.ndim < 2:
            expected = "[H, W]" if self.channels == 1 else "[H, W, 3]"
            raise ValueError(f"has an array {list(array.shape)} of {array.dtype}; {expected} of numbers is expected.")
        brightest = self.brightest or (1 if array.dtype.kind == "f" else 255)
        wrong = ~((array >= 0) & (array <= brightest))
        if wrong.any():
            raise ValueError(f"has the value {array[wrong][0]:g}; it must be from 0 to {brightest}.")
        scaled = torch.from_numpy(array.astype(np.float32) / brightest)
        channels = scaled.permute(2, 0, 1) if scaled.dim() == 3 else scaled.expand(self.channels, -1, -1)
        return tv_tensors.Image(channels)

    def fitted(self, image: Tensor) -> Tensor:
        """An image ``[…, H, W]`` in the size of the model's inputs."""
        height, width = image.shape[-2:]
        if self.fit == "resize":
            return self.resize(image)
        right, below = self.size[1] - width, self.size[0] - height
        if (right or below) if self.fit == "exact" else min(right, below) < 0:
            limit = "" if self.fit == "exact" else "at most "
            raise ValueError(f"has {height}×{width} pixels, but {limit}{self.size[0]}×{self.size[1]} are expected.")
        return F.pad(image, [0, 0, right, below]) if right or below else image

    def finish(self, image: Tensor) -> Tensor:
        """An image of the model's size, uint8 or from 0 to 1, as a normalised float32."""
        return self.normalize(F.to_dtype(image, torch.float32, scale=True)).as_subclass(Tensor)

    def _of_picture(self, image: Image.Image) -> tv_tensors.Image:
        if self.channels == 1 and not (image.mode in GREY or image.mode.startswith("I;16")):
            raise ValueError(f"its mode is {image.mode}, but the model takes greys, as of mode L")
        pixels = to_rgb(image)[..., : self.channels]
        return tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1))


@contextmanager
def _named(raw: Any) -> Iterator[None]:
    """Begin the errors inside the context with the path of a raw input, or with what it is."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{raw if isinstance(raw, str | Path) else 'the image'} {error}") from error


class TextPreprocess:
    """The last ``context`` tokens of a text, int64: its bytes, and the pairs of adjacent bytes that are tokens too.

    ``pairs`` are codes ``256 * first + second``; the pair at place i is the token ``256 + i``. Encoding is greedy from
    the left. A raw input is a string, bytes, or a path of a file; a string is the text itself. ValueError for an empty
    text.
    """

    takes = "text"

    def __init__(self, pairs: Sequence[int] | Codes, context: int) -> None:
        self.pairs, self.context = np.asarray(pairs, np.int32), context

    def __call__(self, raw: Any) -> Tensor:
        """The tokens ``[at most context]`` of a text."""
        if not isinstance(raw, str | bytes | Path):
            raise ValueError(f"a text must be a string, bytes or a path, but it is a {type(raw).__name__}.")
        text = raw.read_bytes() if isinstance(raw, Path) else raw.encode() if isinstance(raw, str) else raw
        if not text:
            raise ValueError(f"{raw if isinstance(raw, Path) else 'the text'} is empty; give one byte or more.")
        return torch.from_numpy(self.encode(text)[-self.context :]).long()

    def state(self) -> dict[str, Any]:
        """The constructor's arguments."""
        target = "mtl.data.preprocess.TextPreprocess"
        return {"_target_": target, "pairs": self.pairs.tolist(), "context": self.context}

    def encode(self, text: bytes) -> Codes:
        """The tokens of a text."""
        codes = np.frombuffer(text, np.uint8).astype(np.int32)
        if not len(self.pairs):
            return codes
        token = np.full(BYTES * BYTES, -1, np.int32)
        token[self.pairs] = BYTES + np.arange(len(self.pairs))
        joined = np.append(token[codes[:-1] * BYTES + codes[1:]], -1)[: len(codes)]
        # In a run of positions where a pair could begin, every second one begins a pair, starting with the first.
        place = np.arange(len(codes), dtype=np.int32)
        free = joined < 0
        run = np.maximum.accumulate(np.where(free, place, -1)) + 1
        begins = ~free & ((place - run) % 2 == 0)
        second = np.append(False, begins[:-1])
        return np.where(begins, joined, codes)[~second]

    @property
    def tokens(self) -> list[str]:
        """The text of every token; bytes that are no UTF-8 by themselves are �."""
        return [self.decode([token]).decode(errors="replace") for token in range(BYTES + len(self.pairs))]

    def decode(self, tokens: Sequence[int]) -> bytes:
        """The text of some tokens."""
        return b"".join(
            bytes([t]) if t < BYTES else bytes(divmod(int(self.pairs[t - BYTES]), BYTES)) for t in map(int, tokens)
        )


class TensorPreprocess:
    """Tensors as they are, for a data set without a preprocess of its own.

    ``sample`` describes the inputs of one sample: ``{"shape": […], "dtype": "float32"}``, or a dict or list of such. A
    raw input is a tensor or array of that shape, or a nesting of them; a path of a .npy file is the array in it.
    ValueError for another shape, with the expected one; numbers are converted to the dtype.
    """

    takes = "tensor"

    def __init__(self, sample: Any) -> None:
        self.sample = sample

    def __call__(self, raw: Any) -> Any:
        """The inputs of one sample."""
        if isinstance(raw, str | Path):
            with errors_named_by(Path(raw)):
                return _as_described(np.load(raw, allow_pickle=False), self.sample)
        return _as_described(raw, self.sample)

    def state(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"_target_": "mtl.data.preprocess.TensorPreprocess", "sample": self.sample}


def _as_described(raw: Any, sample: Any) -> Any:
    if not _is_tensor(sample):
        keys: Any = sample.keys() if isinstance(sample, Mapping) else range(len(sample))
        given: Any = (
            raw.keys() if isinstance(raw, Mapping) else range(len(raw)) if isinstance(raw, list | tuple) else ()
        )
        if set(given) != set(keys):
            raise ValueError(f"the input must be a {type(sample).__name__} of {', '.join(map(str, keys))}.")
        made = [_as_described(raw[key], sample[key]) for key in keys]
        return dict(zip(keys, made, strict=True)) if isinstance(sample, Mapping) else made
    dtype: torch.dtype = getattr(torch, sample["dtype"])
    expected = f"a tensor {sample['shape']} of {sample['dtype']}"
    try:
        tensor = torch.as_tensor(raw)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"the input must be {expected}, but it is a {type(raw).__name__}.") from error
    if list(tensor.shape) != list(sample["shape"]):
        raise ValueError(f"the input must be {expected}, but its shape is {list(tensor.shape)}.")
    if tensor.is_floating_point() and not dtype.is_floating_point:
        raise ValueError(f"the input must be {expected}, but it is of {tensor.dtype}.")
    return tensor.to(dtype)


def _keys(nesting: Any) -> list[Any]:
    """The keys of a dict, or the places in a list or tuple."""
    if isinstance(nesting, Mapping):
        return list(nesting)
    return list(range(len(nesting))) if isinstance(nesting, list | tuple) else []


def _is_tensor(sample: Any) -> bool:
    return isinstance(sample, Mapping) and sample.keys() == {"shape", "dtype"}
