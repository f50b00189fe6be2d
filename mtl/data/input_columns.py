"""The columns of a table as inputs: numbers, categories, dates and texts; without torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api.types import is_bool_dtype, is_datetime64_any_dtype, is_numeric_dtype

from mtl.data.columns import FEW, infer, is_boolean, to_float32, to_numbers
from mtl.data.tables import Files, first_row, row_of

INPUT_KINDS = ("number", "category", "date", "text")
WORDS = 3  # most values of a column of free text have as many or more
# One of them for all rows of a column: which of day and month comes first cannot be told from every row.
DATE_FORMATS = ("ISO8601", "%Y/%m/%d", "%Y/%m/%d %H:%M:%S", "%d.%m.%Y", "%d.%m.%Y %H:%M", "%d/%m/%Y", "%m/%d/%Y")
TRUE = ("true", "1", "1.0")


class LeftOut(ValueError):
    """A column that is no input, and why."""


@dataclass(frozen=True)
class InputColumn:
    """An input: the ``name`` of its column, its ``kind``, and what the training rows say of it.

    ``values``, of a category, are those of the training rows as text: the first has the index 1, and 0 is a missing or
    another one. ``numeric`` and ``boolean`` say that they are numbers or truth values, so that 3, 3.0 and "3" are one
    value. ``mean`` and ``std`` are the statistics of a number, or of the ``parts`` of a date in the ``format``.
    ``gaps``: a training row has no value, so that a further number says where there is none.
    """

    name: str
    kind: str
    values: tuple[str, ...] = ()
    numeric: bool = False
    boolean: bool = False
    format: str = ""
    parts: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    gaps: bool = False

    def __str__(self) -> str:
        if self.kind == "text":
            return "text"
        if self.kind == "category":
            more = f" and {len(self.values) - FEW} more" if len(self.values) > FEW else ""
            return f"category of {', '.join(self.values[:FEW])}{more}"
        own = f"date: {', '.join(self.parts)}" if self.kind == "date" else f"number, mean {self.mean[0]:g}"
        return f"{own}, with gaps" if self.gaps else own

    @property
    def width(self) -> int:
        """How many numbers it becomes."""
        return len(self.mean) + self.gaps

    def numbers(self, own: pd.Series, file: Path | Files) -> NDArray[np.float32]:
        """Standardised numbers ``[N, width]``, 0 where there is none; of a category or a text ``[N, 0]``."""
        if self.kind in ("category", "text"):
            return np.empty((len(own), 0), np.float32)
        found = self._parts(own, file)
        missing = np.isnan(found)
        exact = np.where(missing, 0.0, (found - np.array(self.mean)) / np.array(self.std))
        scaled = to_float32(found, exact, [self.name] * exact.shape[1], file)
        return np.concatenate([scaled, missing[:, :1].astype(np.float32)], 1) if self.gaps else scaled

    def codes(self, own: pd.Series) -> NDArray[np.int32]:
        """The index of every row's category, ``[N]``."""
        index = {value: i for i, value in enumerate(self.values, 1)}
        codes, values = pd.factorize(own)
        found = [index.get(text, 0) for text in self._texts(values)]
        return np.array([*found, 0], np.int32)[codes]

    def _texts(self, values: Any) -> list[str]:
        """Categories as texts: 3, 3.0 and "3" are one number, and True and "true" one truth value."""
        if self.boolean:
            return [str(str(value).strip().casefold() in TRUE) for value in values]
        if not self.numeric:
            return [str(value) for value in values]
        numbers = pd.to_numeric(pd.Series(list(values)), errors="coerce").tolist()
        return [str(v) if pd.isna(n) else f"{float(n):.15g}" for v, n in zip(values, numbers, strict=True)]

    def _parts(self, own: pd.Series, file: Path | Files) -> NDArray[np.float64]:
        if self.kind == "number":
            return to_numbers(own, "number", file)[:, None]
        return np.stack([date_parts(_dates(own, self.format, file))[part] for part in self.parts], 1)


def infer_input(table: Any, name: str, file: Path | Files, reads_text: bool = False) -> str:
    """The kind of an input column; LeftOut for one that is none, ValueError for one of several kinds.

    ``reads_text``: the model reads free text, which otherwise is no input.
    """
    own = table[name]
    known = own.dropna()
    if not len(known):
        raise LeftOut("it is empty")
    if is_datetime64_any_dtype(own) or (_is_text(known) and find_format(own, file)):
        return "date"
    if _is_text(known) and len(known) > FEW and not _mostly_numbers(known):
        different = known.nunique()
        if different > len(known) / 2 and _has_words(known):
            if reads_text:
                return "text"
            raise LeftOut("it is free text, which backbone=table_text and backbone=text read")
        if different == len(known):
            raise LeftOut(f"its {different} texts are all different, as names or identifiers are")
        if different > len(known) / 2:
            raise LeftOut(f"it has {different} different texts in {len(known)} rows, too many for categories")
    return "number" if infer(table, (name,), file) == "number" else "category"


def learn(name: str, own: pd.Series, kind: str, train: NDArray[np.bool_], file: Path | Files) -> InputColumn:
    """What the training rows say of an input; LeftOut for one that is constant there or has no value."""
    seen = own[train].dropna()
    if not len(seen):
        raise LeftOut("it has no value in the training rows")
    gaps = len(seen) < int(train.sum())
    if kind == "text":
        return InputColumn(name, kind)
    if kind == "category":
        column = InputColumn(name, kind, numeric=_is_number(own), boolean=is_boolean(own.dropna()))
        values = sorted(seen.unique().tolist(), key=lambda value: (isinstance(value, str), value))
        if len(values) == 1 and not gaps:
            raise LeftOut(f"it is {values[0]} in every training row")
        return replace(column, values=tuple(dict.fromkeys(column._texts(values))))
    if kind == "number":
        return _with_statistics(InputColumn(name, kind, parts=("value",)), own, train, gaps, file)
    form = find_format(own, file) if _is_text(own.dropna()) else "ISO8601"
    if form is None:
        raise ValueError(f"kinds.{name}=date, but the texts in {name} are no dates; accepted are {_examples()}.")
    parts = date_parts(_dates(own[:1], form, file))
    return _with_statistics(InputColumn(name, kind, format=form, parts=tuple(parts)), own, train, gaps, file)


def _with_statistics(
    column: InputColumn, own: pd.Series, train: NDArray[np.bool_], gaps: bool, file: Path | Files
) -> InputColumn:
    values = column._parts(own, file)[train]
    mean, std = np.nanmean(values, 0), np.nanstd(values, 0)
    if not np.isfinite(std).all():
        raise ValueError(f"{file}: the numbers in {column.name} are too large for a standard deviation; scale them.")
    varies = np.nanmax(values, 0) > np.nanmin(values, 0)  # rounding may give what is constant a deviation
    if not varies.any() and not gaps:
        raise LeftOut(f"it is {own[train].dropna().iloc[0]} in every training row")
    if not varies.any():  # where there is a value is all that it tells
        varies[0], std[0] = True, 1.0
    parts = tuple(part for part, varied in zip(column.parts, varies, strict=True) if varied)
    kept = replace(column, mean=tuple(mean[varies].tolist()), std=tuple(std[varies].tolist()), gaps=gaps)
    return replace(kept, parts=parts if column.kind == "date" else ())


# ------------------------------------------------------------------------------------------------------------- dates


def find_format(own: pd.Series, file: Path | Files) -> str | None:
    """The format of all dates in a column of texts, None where they are none.

    ValueError with the row where most are dates and not all of one format, and where two formats fit.
    """
    texts = pd.Series(own.dropna().unique())
    if not texts.map(lambda value: isinstance(value, str) and sum(map(str.isdigit, value)) >= 4).mean() > 0.5:
        return None
    if pd.to_numeric(texts, errors="coerce").notna().mean() > 0.5:
        return None  # 20240131 may be a number
    if pd.to_datetime(texts, format=DATE_FORMATS[0], errors="coerce").notna().all():
        return DATE_FORMATS[0]
    right = {form: pd.to_datetime(texts, format=form, errors="coerce").notna() for form in DATE_FORMATS}
    whole = [form for form, fits in right.items() if fits.all()]
    if len(whole) > 1:
        raise ValueError(
            f"{file}: {own.name} has dates as {texts.iloc[0]}, of which the day or the month may come first; write "
            "them as 2024-01-31."
        )
    if whole:
        return whole[0]
    form = max(right, key=lambda form: right[form].mean())
    if np.logical_or.reduce([*right.values()]).mean() > 0.5:
        fits, others = texts[right[form]], "most" if right[form].mean() > 0.5 else "other"
        row = first_row(own.notna() & ~own.isin(fits))
        raise ValueError(
            f"{row_of(file, row)}: {own.name} is {own.iloc[row]}, but {others} values of this column are dates "
            f"as {fits.iloc[0]}."
        )
    return None


def _dates(own: pd.Series, form: str, file: Path | Files) -> pd.Series:
    """A column as dates; ValueError with the row of what is none."""
    if is_datetime64_any_dtype(own):
        return own
    dates = pd.to_datetime(own, format=form, errors="coerce")
    wrong = own.notna() & dates.isna()
    if wrong.any():
        row = first_row(wrong)
        raise ValueError(f"{row_of(file, row)}: {own.name} is {own.iloc[row]}, which is no date as {form} has them.")
    return dates


def date_parts(dates: pd.Series) -> dict[str, NDArray[np.float64]]:
    """The parts of dates ``[N]``, NaN where there is none; Monday is the weekday 0."""
    own = dates.dt
    found = {
        "year": own.year, "month": own.month, "weekday": own.day_of_week, "day of year": own.day_of_year,
        "hour": own.hour + own.minute / 60,
    }  # fmt: skip
    return {part: values.to_numpy(np.float64, na_value=np.nan) for part, values in found.items()}


def _examples() -> str:
    moment = pd.Timestamp(2024, 1, 31, 13, 45)
    return ", ".join(moment.strftime("%Y-%m-%d" if form == "ISO8601" else form) for form in DATE_FORMATS)


# ------------------------------------------------------------------------------------------------------------ values


def _is_number(own: pd.Series) -> bool:
    return is_numeric_dtype(own) and not is_bool_dtype(own)


def _is_text(known: pd.Series) -> bool:
    return not is_numeric_dtype(known) and not is_bool_dtype(known) and not is_boolean(known)


def _has_words(known: pd.Series) -> bool:
    """Whether most of a column's first values are of several words, as names and identifiers are not."""
    return bool(known[:1000].astype(str).str.split().str.len().median() >= WORDS)


def _mostly_numbers(known: pd.Series) -> bool:
    return bool(pd.to_numeric(known, errors="coerce").notna().mean() > 0.5)
