"""Two overlapping handwritten digits per image: MultiMNIST's protocol on the digits inside scikit-learn."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad
from torch.utils.data import Dataset
from torchmetrics import Metric

from mtl.data.metadata import digest
from mtl.data.preprocess import ImagePreprocess
from mtl.errors import require, require_positive
from mtl.metrics import classification

SIDE = 8  # pixels of the UCI digits
BRIGHTEST = 16
MEAN, STD = 0.33, 0.37  # pixel statistics of the pairs at the default offset
CLASSES = {"left": 10, "right": 10, "sum": 19, "parity": 2, "left_parity": 2, "right_parity": 2}
NAMES = {target: ["even", "odd"] if count == 2 else list(range(count)) for target, count in CLASSES.items()}


class Digits:
    """Overlapping pairs of UCI handwritten digits (1797 scans of 8×8 pixels), one on the left and one on the right.

    The protocol is that of Sener & Koltun (NeurIPS 2018): the right digit is moved ``offset`` pixels down and to the
    right, the brighter pixel counts where the digits overlap, and the image is resized to ``image_size``. Their ratios
    (36×36 canvas, 28×28 digits, 6 pixels) correspond to an offset of 2 here; 1 is harder. The scans are split (70 / 15
    / 15 %, the same for every seed) before they are paired, so no scan is in two splits. In every epoch, each scan is
    the left digit of ``pairs_per_digit`` pairs; the right digits of the training pairs are drawn anew from ``seed``.

    Inputs: ``[B, 1, image_size, image_size]``. Targets, all class indices: ``left``, ``right``, their ``sum``
    (0 to 18), ``left_parity``, ``right_parity`` and the sum's ``parity`` (1 is odd).
    """

    targets = tuple(CLASSES)

    def __init__(
        self,
        batch_size: int = 64,
        offset: int = 2,
        image_size: int = 32,
        pairs_per_digit: int = 8,
        seed: int = 0,
    ) -> None:
        require_positive(batch_size=batch_size, image_size=image_size, pairs_per_digit=pairs_per_digit)
        accepted = f"from 0 (the digits cover each other) to {SIDE} (they touch)"
        require("offset", offset, accepted, 0 <= offset <= SIDE)
        self.batch_size, self.kinds, self.class_names = batch_size, dict.fromkeys(CLASSES, "class"), NAMES
        self.input_info = {"in_channels": 1, "image_size": image_size}
        self.preprocess = ImagePreprocess([image_size] * 2, fit="exact", channels=1, mean=[MEAN], std=[STD])
        scans, labels = _load()
        scans = scans.reshape(-1, SIDE, SIDE).astype(np.float32) / BRIGHTEST
        train, rest = _stratified_halves(labels, 0.7)
        val, test = (rest[half] for half in _stratified_halves(labels[rest], 0.5))

        def pairs(split: np.ndarray, fixed: int | None) -> Pairs:
            source = torch.from_numpy(scans[split]), torch.from_numpy(labels[split])
            own, redraw = (seed, True) if fixed is None else (fixed, False)
            return Pairs(*source, offset, pairs_per_digit, self.preprocess, seed=own, redraw=redraw)

        self.train, self.val, self.test = pairs(train, None), pairs(val, 1), pairs(test, 2)

    def metrics(self, target: str) -> dict[str, Metric]:
        """Accuracy: the share of correctly classified images."""
        return classification(CLASSES[target])


@cache
def _load() -> tuple[np.ndarray, np.ndarray]:
    """The scans [1797, 64] and their labels, from scikit-learn's file: its import would take a second."""
    spec = importlib.util.find_spec("sklearn")
    assert spec is not None and spec.origin is not None
    file = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
    rows = np.loadtxt(file, delimiter=",")  # 60 ms, once per process of a sweep
    return rows[:, :-1], rows[:, -1].astype(np.int64)


def _stratified_halves(labels: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """The indices of a random ``share`` of every class, and of the rest, each shuffled.

    The same numbers as scikit-learn's ``train_test_split(…, stratify=labels, random_state=0)``.
    """
    random = np.random.RandomState(0)
    counts = np.bincount(labels)
    total = int(share * len(labels))
    first = _draws_per_class(counts, total, random)
    second = _draws_per_class(counts - first, len(labels) - total, random)
    halves: tuple[list[int], list[int]] = [], []
    for label, (a, b) in enumerate(zip(first, second, strict=True)):
        shuffled = np.flatnonzero(labels == label)[random.permutation(counts[label])]
        halves[0].extend(shuffled[:a])
        halves[1].extend(shuffled[a : a + b])
    return random.permutation(halves[0]), random.permutation(halves[1])


def _draws_per_class(counts: np.ndarray, total: int, random: np.random.RandomState) -> np.ndarray:
    """How many of ``total`` draws each class gets: in proportion, and what is left to the largest remainders."""
    exact = counts / counts.sum() * total
    draws = np.floor(exact).astype(int)
    remainders = exact - draws
    for remainder in np.unique(remainders)[::-1]:
        missing = total - draws.sum()
        equal = np.flatnonzero(remainders == remainder)
        if missing:
            draws[random.choice(equal, min(len(equal), missing), replace=False)] += 1
    return draws


class Pairs(Dataset):
    """The pairs of one split; sample ``i`` has scan ``i mod n`` on the left.

    ``scans`` is ``[n, side, side]``, from 0 to 1 or uint8. ``margin`` is the empty space to the right of both digits
    and below them; ``mode`` is the interpolation of the resize to the size of ``preprocess``.
    """

    def __init__(
        self,
        scans: Tensor,
        labels: Tensor,
        offset: int,
        repeats: int,
        preprocess: ImagePreprocess,
        *,
        seed: int,
        redraw: bool,
        margin: int = 0,
        mode: str = "bilinear",
    ) -> None:
        self._scans, self._labels, self._preprocess = scans[:, None], labels, preprocess
        self._left = (0, offset + margin, 0, offset + margin)  # padding: left, right, above, below
        self._right = (offset, margin, offset, margin)
        self._mode, self._repeats, self._seed, self._redraw = mode, repeats, seed, redraw
        self._partners: tuple[int, Tensor] = (-1, torch.empty(0))
        self.digest = digest(scans, labels)

    def __len__(self) -> int:
        return len(self._labels) * self._repeats

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        inputs, targets = self.batch([index], epoch=0)
        return inputs[0], {name: target[0] for name, target in targets.items()}

    def batch(self, indices: Sequence[int], epoch: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The samples of ``indices`` in this epoch; they depend on the seed, the epoch and the indices alone."""
        left = torch.as_tensor(indices) % len(self._labels)
        right = self._right_digits(epoch if self._redraw else 0)[torch.as_tensor(indices)]
        images = torch.maximum(pad(self._scans[left], self._left), pad(self._scans[right], self._right))
        if not images.is_floating_point():
            images = images / 255
        align = False if self._mode == "bilinear" else None
        images = interpolate(images, size=self._preprocess.size, mode=self._mode, align_corners=align)
        a, b = self._labels[left], self._labels[right]
        targets = dict(left=a, right=b, sum=a + b, parity=(a + b) % 2, left_parity=a % 2, right_parity=b % 2)
        return self._preprocess.finish(images), targets

    def _right_digits(self, epoch: int) -> Tensor:
        if self._partners[0] != epoch:
            draw = np.random.default_rng((self._seed, epoch)).integers(len(self._labels), size=len(self))
            self._partners = (epoch, torch.from_numpy(draw))
        return self._partners[1]
