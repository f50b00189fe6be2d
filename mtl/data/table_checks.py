"""What the labels of a table may mean otherwise than they are read: their counts, and warnings of likely mistakes."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mtl.data import SPLITS

log = logging.getLogger(__name__)

SHOWN = 20  # classes whose counts are shown
# Words and numbers by which tables mark what is not known. A class may have such a name, so that they are only named.
MARKS = ("na", "n/a", "#n/a", "n.a.", "nan", "null", "nil", "none", "?", "??", "-", "--", ".", "unk")
WORDS = (*MARKS, "unknown", "unlabelled", "unlabeled", "undefined", "missing")
NEGATIVE = (-1.0, -9.0, -99.0, -999.0, -9999.0, -99999.0)
POSITIVE = (99.0, 255.0, 999.0, 9999.0, 99999.0)


class Untrainable(ValueError):
    """A target that its training rows cannot teach."""

    def __init__(self, target: str, sentence: str) -> None:
        super().__init__(sentence)
        self.target = target


def check_labelled(where: str, target: str, kind: str, own: pd.DataFrame, train: NDArray[np.bool_]) -> None:
    """Untrainable if one of a target's columns ``own`` has no label in the training rows, or a class has one value."""
    for column in own:
        labels = own.loc[train, column].dropna()
        if kind == "class" and len(labels) and own[column].nunique() > 1 and labels.nunique() == 1:
            raise Untrainable(
                target,
                f"{where}: {column} is {labels.iloc[0]!r} in every training row that has a label, so that there is "
                "nothing to learn; choose other splits, or leave it out of data.targets.",
            )
        if not len(labels):
            raise Untrainable(
                target,
                f"{where}: {column} has no label in the training rows, so it cannot be learnt; label some of them, or "
                "leave it out of data.targets.",
            )


def inspect(where: str, kind: str, own: pd.DataFrame, parts: NDArray[Any], missing: Sequence[Any] | None) -> str:
    """Warn of likely mistakes in a target's columns ``own``, and return how many labels each split has of what.

    ``where`` begins each sentence; ``parts`` is each row's split. With ``missing`` empty no value is taken for the mark
    of a missing label.
    """
    for split in SPLITS[1:]:
        if not own.loc[parts == split].notna().any(axis=None):
            log.warning("%s has no label in %s, so that its metrics have no value there", where, split)
    if missing is None or len(missing):
        for column in own:
            _warn_of_marks(where, kind, own[column].dropna())
    if kind == "class":
        labels = own.iloc[:, 0]
        _warn_of_duplicates(where, _tally(labels))
        _warn_of_unseen(where, labels, parts)
    return _counts(kind, own, parts)


def is_mark(value: Any) -> bool:
    """Whether a text looks like the mark of a missing label."""
    return isinstance(value, str) and (
        value.strip().casefold() in WORDS or _number(value) in (*NEGATIVE, *POSITIVE[2:])
    )


def how_to_name(marks: Sequence[Any]) -> str:
    """What makes values the marks of missing labels, in words."""
    return f"data.missing=[{','.join(f'{mark}'.strip() for mark in marks)}] (--missing of the command) makes it one"


def _warn_of_marks(where: str, kind: str, labels: pd.Series) -> None:
    counts = _tally(labels)
    found = [value for value in counts.index if is_mark(value)] or _odd_numbers(kind, labels)
    for value in found:
        log.warning(
            "%s: %r in %d rows looks like the mark of a missing label; %s, and data.missing=[] says that it is none",
            where, _plain(value), counts[value], how_to_name([_plain(value)]),
        )  # fmt: skip


def _odd_numbers(kind: str, labels: pd.Series) -> list[float]:
    """Numbers that stand for none elsewhere, and are apart from all others here."""
    if not pd.api.types.is_numeric_dtype(labels) or pd.api.types.is_bool_dtype(labels):
        return []
    values = np.unique(labels.to_numpy(np.float64))
    positive = POSITIVE if kind == "class" else POSITIVE[2:]
    found = []
    for value in (v for v in values if v in NEGATIVE or v in positive):
        others = values[~np.isin(values, (*NEGATIVE, *positive))]
        if not len(others) or (value == -1 and kind == "class" and {*others} == {1.0}):
            continue  # -1 and 1 are two classes
        apart = np.abs(others - value).min() > max(1.0, np.ptp(others))
        if apart or (value < 0 and others.min() >= 0):
            found.append(float(value))
    return found


def _warn_of_duplicates(where: str, counts: pd.Series) -> None:
    groups: dict[Any, list[Any]] = {}
    for value in counts.index:
        groups.setdefault(_normal_form(value), []).append(value)
    for same in groups.values():
        if len(same) > 1:
            named = ", ".join(f"{value!r} in {counts[value]} rows" for value in same)
            log.warning(
                "%s: %s look like one class that is spelt in %d ways; correct the table", where, named, len(same)
            )


def _warn_of_unseen(where: str, labels: pd.Series, parts: NDArray[Any]) -> None:
    unseen = sorted({*labels.dropna()} - {*labels[parts == "train"]}, key=str)
    if unseen:
        named = ", ".join(repr(_plain(value)) for value in unseen[:5]) + (" …" if len(unseen) > 5 else "")
        log.warning("%s: no training row has the class %s, so that it cannot be learnt but is tested", where, named)


def _counts(kind: str, own: pd.DataFrame, parts: NDArray[Any]) -> str:
    """The labels of each split: of each class, of 1 in each binary label, or the range of the numbers."""
    words = []
    for split in SPLITS:
        rows = own[parts == split]
        details = _details(kind, rows)
        words.append(f"{split} {int(rows.notna().all(axis=1).sum())}{f' ({details})' if details else ''}")
    gaps = int(own.isna().any(axis=1).sum())
    return f"labels: {', '.join(words)}; missing {gaps}"


def _details(kind: str, rows: pd.DataFrame) -> str:
    if kind == "class":
        counts = ((_plain(value), count) for value, count in _tally(rows.iloc[:, 0]).items())
        ordered = sorted(counts, key=lambda item: (isinstance(item[0], str), item[0]))
        more = [f"and {len(ordered) - SHOWN} more"] if len(ordered) > SHOWN else []
        return ", ".join([*(f"{value!r}: {count}" for value, count in ordered[:SHOWN]), *more])
    named = [(column, pd.to_numeric(rows[column], errors="coerce").astype(float).dropna()) for column in rows]
    named = [(column, own) for column, own in named if len(own)]
    if kind == "labels":
        return ", ".join(f"{column} {int(own.sum())} of {len(own)}" for column, own in named)
    return ", ".join(f"{column} {own.min():g} to {own.max():g}" for column, own in named)


def _tally(labels: pd.Series) -> pd.Series:
    """The rows of each value that occurs."""
    counts = labels.value_counts()
    return counts[counts > 0]  # a categorical column names others as well


def _normal_form(value: Any) -> Any:
    """What the spellings of one class have in common."""
    if not isinstance(value, str):
        return value
    text = re.sub("[\u200b-\u200d\ufeff]", "", unicodedata.normalize("NFKC", value)).strip()  # of no width
    text = text if len(text) == 1 else text.casefold()  # a and A may be two letters to tell apart
    number = _number(text)
    return re.sub(r"(?<=\w)[\s_-]+(?=\w)", " ", text) if number is None else number


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _plain(value: Any) -> Any:
    """A whole number as it stands in the table: a column with empty cells is read as floats."""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return int(value)
    return value.item() if isinstance(value, np.generic) else value


def check_all_splits(parts: NDArray[Any], file: object) -> None:
    """ValueError for a split without a row."""
    for part in SPLITS:
        if not (parts == part).any():
            raise ValueError(f"{file} has no row for the split {part}.")
