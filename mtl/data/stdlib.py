"""Next-token prediction on a text that every machine has: the source code of Python's standard library."""

from __future__ import annotations

import logging
import sysconfig
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchmetrics import Metric

from mtl.data import SPLITS
from mtl.data.metadata import digest
from mtl.data.preprocess import BYTES, Codes, TextPreprocess
from mtl.errors import require
from mtl.metrics import BitsPerByte

log = logging.getLogger(__name__)

TESTS = {"test", "tests", "idle_test"}
INSTALLED = {"site-packages", "dist-packages"}
PIECES = 20  # one piece of this many is for validation, and one for the test

Texts = dict[str, bytes]  # by the file's name


class Stdlib:
    """The running Python's standard library without its tests, as bytes or as bytes and frequent pairs of bytes.

    ``path`` names another text: a file, or a folder, of which all files are read that are UTF-8 and not hidden. One
    file in twenty is for validation and one for the test, the same for every seed; fewer than three files are first
    joined and cut into twenty pieces. Another run's ``metadata`` keep the split of every file, and leave out new files.

    With ``vocabulary`` above 256, the most frequent pairs of adjacent bytes in the training text are tokens too.
    Encoding is greedy from the left. A text may have fewer different pairs; ``input_info`` has the actual size of the
    vocabulary.

    Inputs: ``[B, context]``, token ids. Targets ``next_k`` for k = 1 … ``futures``, of the same shape: the tokens k
    positions ahead. The samples are consecutive windows of the text; those for validation and test are in a fixed
    random order, so that the first batches are representative.

    Raises ValueError for a path without text, and for a split that is shorter than one window.
    """

    def __init__(
        self,
        batch_size: int = 32,
        context: int = 128,
        vocabulary: int = BYTES,
        futures: int = 8,
        path: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("context", context, 1),
            ("vocabulary", vocabulary, BYTES),
            ("futures", futures, 1),
        ):
            require(name, value, f"{least} or more", value >= least)
        self.batch_size = batch_size
        self.targets = tuple(f"next_{k}" for k in range(1, futures + 1))
        texts = _standard_library() if path is None else _read_texts(path)
        parts = _kept_split(texts, metadata["files"]) if metadata else _split(texts)
        train, val, test = (b"".join(part.values()) for part in parts)
        pairs = metadata["pairs"] if metadata else _frequent_pairs(train, vocabulary - BYTES)
        self.preprocess = TextPreprocess(pairs, context)
        self.pairs = self.preprocess.pairs
        files = {split: list(part) for split, part in zip(SPLITS, parts, strict=True)}
        self.metadata = {"pairs": self.pairs.tolist(), "files": metadata["files"] if metadata else files}
        self.vocabulary = BYTES + len(self.pairs)
        self.input_info = {"vocabulary": self.vocabulary, "context": context}
        tokens = [self.encode(text) for text in (train, val, test)]
        shortest = min(map(len, tokens))
        if shortest < context + futures:
            raise ValueError(
                f"path={path}: the text is too short, for one of its splits has {shortest} tokens and a window "
                f"has context + futures = {context + futures}."
            )
        self.train, self.val, self.test = (Windows(t, context, futures, i > 0) for i, t in enumerate(tokens))
        log.info(
            "%s: %s files, %s bytes as %s tokens; vocabulary %s: 256 bytes and %s pairs",
            "Python's standard library" if path is None else path, f"{len(texts):,}",
            f"{len(train) + len(val) + len(test):,}", f"{sum(map(len, tokens)):,}",
            f"{self.vocabulary:,}", f"{len(self.pairs):,}",
        )  # fmt: skip

    def encode(self, text: bytes) -> Codes:
        """The tokens of a text."""
        return self.preprocess.encode(text)

    def decode(self, tokens: Sequence[int]) -> bytes:
        """The text of some tokens."""
        return self.preprocess.decode(tokens)

    def metrics(self, target: str) -> dict[str, Metric]:
        """``bits_per_byte``, which is comparable between vocabularies."""
        return {"bits_per_byte": BitsPerByte([1] * BYTES + [2] * len(self.pairs))}


class Windows(Dataset):
    """The windows of one split: ``context`` tokens, and for each token the ``futures`` tokens after it."""

    def __init__(self, tokens: Codes, context: int, futures: int, mixed: bool) -> None:
        self.tokens = torch.from_numpy(tokens)
        self._context, self._futures = context, futures
        self.digest = digest(tokens)
        self._order = torch.arange((len(tokens) - futures) // context)
        if mixed:
            self._order = torch.from_numpy(np.random.default_rng(0).permutation(len(self._order)))

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        inputs, targets = self.batch([index], epoch=0)
        return inputs[0], {name: target[0] for name, target in targets.items()}

    def batch(self, indices: Sequence[int], epoch: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The windows of ``indices``, the same in every epoch."""
        starts = self._order[torch.as_tensor(indices)] * self._context
        window = self.tokens[starts[:, None] + torch.arange(self._context + self._futures)].long()
        futures = range(1, self._futures + 1)
        return window[:, : self._context], {f"next_{k}": window[:, k : k + self._context] for k in futures}


def _standard_library() -> Texts:
    root = Path(sysconfig.get_path("stdlib"))
    files = [p for p in root.rglob("*.py") if not (TESTS | INSTALLED) & set(p.relative_to(root).parts)]
    if not files:
        raise ValueError(f"There is no source code in {root}, this Python's library: give another text by data.path=….")
    return {file.relative_to(root).as_posix(): file.read_bytes() for file in sorted(files)}


def _read_texts(path: str) -> Texts:
    root = Path(path)
    if not root.exists():
        raise ValueError(f"path={path} does not exist: give a text file or a folder of them.")
    files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file() and not _hidden(p, root))
    texts: Texts = {}
    for file in files:
        try:
            text = file.read_bytes()
            text.decode()
        except OSError as error:
            raise ValueError(f"path={path}: {file} cannot be read ({error.strerror}).") from error
        except UnicodeDecodeError:
            continue
        if text:
            texts[file.relative_to(root).as_posix()] = text
    if not texts:
        raise ValueError(f"path={path} has no text: none of its {len(files)} files is non-empty UTF-8.")
    return texts


def _hidden(file: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(root).parts)


def _split(texts: Texts) -> tuple[Texts, Texts, Texts]:
    """The files for training, validation and test."""
    texts = _in_pieces(texts)
    names = list(texts)
    order = np.random.default_rng(0).permutation(len(names))
    held_out = max(1, len(names) // PIECES)
    parts = order[2 * held_out :], order[:held_out], order[held_out : 2 * held_out]
    train, val, test = ({names[i]: texts[names[i]] for i in sorted(part)} for part in parts)
    return train, val, test


def _kept_split(texts: Texts, files: Mapping[str, Sequence[str]]) -> tuple[Texts, Texts, Texts]:
    """The files of another run's splits; those that it did not have are left out."""
    texts = _in_pieces(texts)
    train, val, test = ({name: texts[name] for name in files[split] if name in texts} for split in SPLITS)
    return train, val, test


def _in_pieces(texts: Texts) -> Texts:
    """Twenty pieces of fewer than three files, joined; more files as they are."""
    if len(texts) >= 3:
        return texts
    joined = b"".join(texts.values())
    edges = [len(joined) * i // PIECES for i in range(PIECES + 1)]
    return {f"piece {i}": joined[a:b] for i, (a, b) in enumerate(pairwise(edges))}


def _frequent_pairs(text: bytes, most: int) -> Codes:
    """The codes ``256 * first + second`` of the ``most`` most frequent pairs of adjacent bytes, in that order."""
    codes = np.frombuffer(text, np.uint8).astype(np.int32)
    counts = np.bincount(codes[:-1] * BYTES + codes[1:], minlength=BYTES * BYTES)
    return np.argsort(-counts, kind="stable")[: min(most, np.count_nonzero(counts))].astype(np.int32)
