"""PAWS-X: whether two sentences say the same, in several languages; the languages are the tasks."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtl.data import fixtures
from mtl.data.folder import errors_named_by, find_root
from mtl.errors import require, require_positive

if TYPE_CHECKING:
    from torchmetrics import Metric

log = logging.getLogger(__name__)

SOURCE = (
    "the folder is x-final of github.com/google-research-datasets/paws, and "
    "python -m mtl.data.paws_x --make-fixture DIR writes a tiny one."
)
FILES = {"train": "translated_train.tsv", "val": "dev_2k.tsv", "test": "test_2k.tsv"}
HEADER = ["id", "sentence1", "sentence2", "label"]
CLASSES = ("different", "paraphrase")
MISSING = -100

Pairs = list[tuple[tuple[str, str], int]]


class PawsX:
    """The ``languages`` of PAWS-X. Each is a task: to tell whether two sentences are paraphrases.

    ``root`` has a folder of each language with ``dev_2k.tsv``, ``test_2k.tsv`` and ``translated_train.tsv``, of English
    ``train.tsv``. ``tokenizer`` is a tokenizer.json or a folder with one; by default a vocabulary is learnt from the
    training sentences. Pairs of more than ``length`` tokens are cut.

    Inputs: a dict language -> ``{"tokens": [B, length], "mask": [B, length], "segments": [B, length]}``. Targets: a
    dict language -> classes, -100 where the file has none. A training batch has ``batch_size`` pairs of every language.

    Raises ValueError for missing files and malformed lines. Source: Yang et al. 2019.
    """

    inputs_per_task = True

    def __init__(
        self,
        root: str,
        languages: Sequence[str] = ("en", "zh", "de", "es"),
        tokenizer: str | None = None,
        length: int = 128,
        batch_size: int = 32,
        seed: int = 0,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        from mtl.data.own_inputs import OwnInputs
        from mtl.data.tokenizer import Tokenizer, tokenizer_content

        require_positive(batch_size=batch_size)
        require("languages", list(languages), "a list of one name or more", bool(languages))
        needed = {path: "pairs of sentences" for language in languages for path in _files(language).values()}
        folder = find_root(root, needed, SOURCE)
        pairs = {
            split: {language: _read_pairs(folder / _files(language)[split]) for language in languages}
            for split in FILES
        }
        train = [pair for own in pairs["train"].values() for pair, _ in own]
        sentences = [sentence for pair in train for sentence in pair]
        content = metadata["tokenizer"] if metadata else tokenizer_content(tokenizer, sentences)
        self.preprocess = Tokenizer(content, length, HEADER[1:3])
        if not metadata:
            self.preprocess.say_cut(train)
        self.targets, self.batch_size = tuple(languages), batch_size
        self.input_info = self.preprocess.input_info
        self.metadata = {"tokenizer": self.preprocess.content, "classes": CLASSES}
        self.class_names = dict.fromkeys(languages, CLASSES)
        self.train, self.val, self.test = (
            OwnInputs(own, self.preprocess.encode, _names(own), seed if split == "train" else None)
            for split, own in pairs.items()
        )

    def metrics(self, target: str) -> dict[str, Metric]:
        """Accuracy: the share of correctly classified pairs of a language."""
        from mtl import metrics

        return metrics.classification(len(CLASSES))


def _files(language: str) -> dict[str, str]:
    """The path of each split's file below the root."""
    return {
        split: f"{language}/{'train.tsv' if (language, split) == ('en', 'train') else name}"
        for split, name in FILES.items()
    }


def _names(pairs: Mapping[str, Pairs]) -> list[str]:
    return [f"{language}\t{first}\t{second}" for language, own in pairs.items() for (first, second), _ in own]


def _read_pairs(file: Path) -> Pairs:
    """The pairs of a file, without its header; a warning for sentences that are not there."""
    with errors_named_by(file):
        header, *lines = file.read_text(encoding="utf-8").rstrip("\n").split("\n")
    if header.split("\t") != HEADER:
        raise ValueError(f"{file} begins with '{header}'; its first line must be {', '.join(HEADER)}, between tabs.")
    pairs: Pairs = []
    for number, line in enumerate(lines, 2):
        cells = [cell.strip() for cell in line.split("\t")]
        if len(cells) != len(HEADER):
            raise ValueError(f"{file}, row {number}, has {len(cells)} columns; it must have {', '.join(HEADER)}.")
        label = int(cells[3]) if cells[3] in ("0", "1") else MISSING
        pairs.append(((cells[1], cells[2]), label))
    if not pairs:
        raise ValueError(f"{file} has no pair of sentences.")
    _say_gaps(file, pairs)
    return pairs


def _say_gaps(file: Path, pairs: Pairs) -> None:
    gaps = sum(any(sentence in ("", "NS") for sentence in pair) for pair, _ in pairs)
    if gaps:
        log.warning(
            "%s: %d of %d pairs lack a sentence (empty or NS), and are kept, as others do", file, gaps, len(pairs)
        )
    unknown = sum(label == MISSING for _, label in pairs)
    if unknown:
        log.warning("%s: %d of %d labels are neither 0 nor 1, and count as missing", file, unknown, len(pairs))


# ---------------------------------------------------------------------------------------------------- a fixture


def make_fixture(root: Path, languages: Iterable[str] = ("en", "zh", "de", "es"), pairs: int = 24) -> None:
    """Write short sentences in words of each language's own; a paraphrase says the same in another order."""
    import numpy as np

    rng = np.random.default_rng(0)
    for language in languages:
        words = [f"{language}{i}" for i in range(12)]
        for split, name in _files(language).items():
            rows = ["\t".join(HEADER)]
            for number in range(1, (pairs if split == "train" else pairs // 3) + 1):
                first = list(rng.choice(words, 5, replace=False))
                label = number % 2
                second = first[2:] + first[:2] if label else [*first[:2], *rng.choice(words, 3)]
                rows.append(f"{number}\t{' '.join(first)}\t{' '.join(second)}\t{label}")
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    fixtures.main(make_fixture)
