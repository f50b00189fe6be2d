"""Texts as tokens: a tokenizer of the tokenizers library from a file, or one learnt from the training texts."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mtl.data.folder import errors_named_by
from mtl.errors import first_line, require_positive

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

log = logging.getLogger(__name__)

FILE = "tokenizer.json"
PADDING = ("[PAD]", "<pad>", "<|padding|>")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")  # of a learnt vocabulary
VOCABULARY = 8000  # the most tokens that are learnt
LOOKED_AT = 10_000  # texts from all over the split, for what is said of them

Text = str | Sequence[str]  # one, or a pair of them


class Tokenizer:
    """Texts, or pairs of texts, as ``{"tokens": int64 [B, length], "mask": bool [B, length]}``, also as a preprocess.

    A text that has more than ``length`` tokens is cut, a pair from its longer text; a shorter one is padded, where
    ``mask`` is false. Pairs also have ``segments`` int64 [B, length]: 0 for the first text, 1 for the second. All texts
    have one length, so that the tokens of a text depend on nothing but itself.

    ``content`` is that of a tokenizer.json of the tokenizers library. A raw input is a text, or a path of a file with
    one; with two ``columns`` a pair of texts, or a dict with these keys. ValueError for anything else, and where the
    content is no tokenizer.
    """

    def __init__(self, content: str, length: int, columns: Sequence[str] = ()) -> None:
        require_positive(length=length)
        self._own = _library().Tokenizer.from_str(content)
        self._own.no_padding()
        self._own.no_truncation()
        self.content, self.length, self.columns = self._own.to_str(), length, list(columns)
        self.takes = "row" if columns else "text"
        self._padding = next((i for i in map(self._own.token_to_id, PADDING) if i is not None), 0)
        least = self._own.num_special_tokens_to_add(True) + 2
        if length < least:
            raise ValueError(f"length={length} must be {least} or more: a pair with its special tokens has as many.")
        self._own.enable_truncation(length)

    def __call__(self, raw: Any) -> dict[str, Tensor]:
        """The tokens of one raw input."""
        return {name: own[0] for name, own in self.encode([self._text(raw)]).items()}

    def batch(self, rows: pd.DataFrame) -> dict[str, Tensor]:
        """The tokens of the rows of a table with these columns."""
        return self.encode([self._text(row) for row in rows.to_dict("records")])

    def encode(self, texts: Sequence[Text]) -> dict[str, Tensor]:
        """The tokens of a batch, the batch axis first."""
        import torch

        tokens = np.full((len(texts), self.length), self._padding, np.int64)
        mask = np.zeros((len(texts), self.length), bool)
        segments = np.zeros((len(texts), self.length), np.int64)
        for row, text in enumerate(texts):
            encoded = self._encode(text)
            count = max(1, len(encoded.ids))  # an empty text without special tokens is one of padding
            tokens[row, : len(encoded.ids)], mask[row, :count] = encoded.ids, True
            segments[row, : len(encoded.ids)] = encoded.type_ids
        batch = {"tokens": torch.from_numpy(tokens), "mask": torch.from_numpy(mask)}
        pairs = any(not isinstance(text, str) for text in texts)
        return batch | {"segments": torch.from_numpy(segments)} if pairs else batch

    def state(self) -> dict[str, Any]:
        """The constructor's arguments."""
        target = "mtl.data.tokenizer.Tokenizer"
        return {"_target_": target, "content": self.content, "length": self.length, "columns": self.columns}

    @property
    def input_info(self) -> dict[str, int]:
        """What a backbone of texts is told."""
        return {"vocabulary": self._own.get_vocab_size(), "context": self.length}

    def say_cut(self, texts: Sequence[Text]) -> None:
        """Say how many training texts are cut or empty, counted on some thousands from all over them."""
        chosen = [texts[i] for i in np.unique(np.linspace(0, len(texts) - 1, min(len(texts), LOOKED_AT)).astype(int))]
        encoded = [self._encode(text) for text in chosen]
        cut = sum(bool(own.overflowing) for own in encoded)
        empty = sum(not part.strip() for text in chosen for part in ([text] if isinstance(text, str) else text))
        share = f"of {len(chosen):,} training texts" + (" looked at" if len(chosen) < len(texts) else "")
        if cut:
            log.warning("%s, %s have more than data.length=%d tokens and are cut", share, f"{cut:,}", self.length)
        else:
            longest = max(len(own.ids) for own in encoded)
            log.info("%s, the longest has %d tokens; all are padded to data.length=%d", share, longest, self.length)
        if empty:
            log.warning("%s, %s are empty", share, f"{empty:,}")

    def _text(self, raw: Any) -> Text:
        """A raw input as a text or a pair; ValueError for anything else."""
        if isinstance(raw, Path):
            with errors_named_by(raw):
                return raw.read_text(encoding="utf-8")
        if self.columns and isinstance(raw, Mapping):
            if lacking := [name for name in self.columns if name not in raw]:
                raise ValueError(f"a row must have {' and '.join(self.columns)}; this one lacks {lacking[0]}.")
            raw = [raw[name] for name in self.columns]
        texts = [raw] if isinstance(raw, str) else raw
        expected = f"a pair of texts, {' and '.join(self.columns)}" if self.columns else "a text"
        count = len(self.columns) or 1
        if not isinstance(texts, list | tuple) or len(texts) != count or not all(isinstance(t, str) for t in texts):
            raise ValueError(f"an input must be {expected}, but it is a {type(raw).__name__}.")
        return texts[0] if count == 1 else tuple(texts)

    def _encode(self, text: Text) -> Any:
        # One by one: a batch would be encoded by several threads, which worker processes that are forked do not have.
        return self._own.encode(text) if isinstance(text, str) else self._own.encode(*text)


def tokenizer_content(path: str | None, texts: Iterable[str]) -> str:
    """The content of the tokenizer.json at ``path``, or in that folder; without a path of one learnt from ``texts``.

    ValueError where there is none.
    """
    if path is None:
        log.warning(
            "data.tokenizer is open: a vocabulary of at most %s words and letters is learnt from the training texts",
            f"{VOCABULARY:,}",
        )  # fmt: skip
        return learn(texts)
    file = Path(path).expanduser()
    file = file / FILE if file.is_dir() else file
    if not file.is_file():
        raise ValueError(
            f"tokenizer={path}: there is no {file.absolute()}; give a {FILE} or a folder with one, as "
            "transformers' AutoTokenizer.from_pretrained(…).save_pretrained(FOLDER) writes it."
        )
    content = file.read_text(encoding="utf-8", errors="replace")
    try:
        _library().Tokenizer.from_str(content)
    except ValueError:  # there is no library
        raise
    except Exception as error:
        raise ValueError(f"tokenizer={path}: {file} is no tokenizer: {first_line(error)}.") from error
    return content


def learn(texts: Iterable[str], vocabulary: int = VOCABULARY) -> str:
    """A tokenizer.json of the letters of ``texts`` and their most frequent words, in lower case.

    Greedy from the left, as WordPiece: a word that is not among them falls into the longest one that it begins with,
    and letters. The library's own training of such pieces gives another vocabulary every time, and a resumed run needs
    the same.
    """
    tokenizers = _library()
    own = tokenizers.Tokenizer(tokenizers.models.WordLevel(unk_token="[UNK]"))
    own.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    own.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    texts, letters = list(texts), Counter[str]()
    for text in texts:
        letters.update(own.normalizer.normalize_str(text))
    frequent = sorted((x for x in letters if not x.isspace()), key=lambda x: (-letters[x], x))[: vocabulary // 4]
    trainer = tokenizers.trainers.WordLevelTrainer(vocab_size=vocabulary, min_frequency=2, show_progress=False)
    own.train_from_iterator(texts, trainer)
    words = sorted(own.get_vocab(), key=own.get_vocab().__getitem__)  # the most frequent first
    pieces = dict.fromkeys([*SPECIAL, *frequent, *(f"##{letter}" for letter in frequent), *words])
    known = {piece: i for i, piece in enumerate([*pieces][:vocabulary])}
    own.model = tokenizers.models.WordPiece(known, unk_token="[UNK]")
    own.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", known["[CLS]"]), ("[SEP]", known["[SEP]"])],
    )
    return own.to_str()


def _library() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise ValueError(
            "texts need the extra text, as in pip install 'mtl-torch[text]': there is no package tokenizers."
        ) from error
    return tokenizers
