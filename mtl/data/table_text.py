"""Tables as text, without pandas: their encoding, what separates the columns, and the columns' names."""

from __future__ import annotations

import codecs
import csv
import difflib
import io
from collections.abc import Collection
from itertools import islice
from pathlib import Path

TEXT = (".csv", ".tsv", ".txt")
REMEDY = "save the table as UTF-8, as with iconv -f latin1 -t utf-8 if it is Latin-1"
LARGE = 1 << 28  # bytes of a text that is not read for its header alone
SEPARATORS = (",", ";", "\t", "|")


def read_header(file: Path) -> list[str]:
    """The names of a text table's columns; none where pandas may name them otherwise, or the file cannot be read.

    None either of a large file, which is not read for them alone.
    """
    if file.suffix.lower() not in TEXT:
        return []
    try:
        if file.stat().st_size > LARGE:
            return []
        content = decode(file.read_bytes())
        header = header_of(content, find_separator(content))
    except (OSError, ValueError, csv.Error):
        return []
    return header if all(name.strip() for name in header) and len({*header}) == len(header) else []


def decode(content: bytes) -> str:
    """The text of a file in UTF-8, or in another Unicode encoding that its first bytes tell."""
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"line {line} is not UTF-8; {REMEDY}") from error
    if "\0" in text:  # as in UTF-16 whose first bytes do not tell, and in UTF-32
        line = text[: text.index("\0")].count("\n") + 1
        raise ValueError(f"line {line} has a zero byte; save the table as UTF-8")
    return text if "\n" in text else text.replace("\r", "\n")  # the ends of lines of old programs


def find_separator(content: str) -> str:
    """What separates the columns: a sign that every row has as often as the header, the comma before others."""
    for sign in SEPARATORS:
        rows = [row for row in islice(csv.reader(io.StringIO(content), delimiter=sign), 100) if row]
        if rows and len(rows[0]) > 1 and {len(row) for row in rows} == {len(rows[0])}:
            return sign
    return SEPARATORS[0]


def header_of(content: str, separator: str) -> list[str]:
    """The first row that is not empty."""
    return next((row for row in csv.reader(io.StringIO(content), delimiter=separator) if row), [])


def check_rows(content: str, separator: str) -> None:
    """ValueError for a row with more or fewer values than the header: pandas would shift or fill them."""
    limit = csv.field_size_limit(len(content))  # a cell may be a whole document
    try:
        rows = (row for row in csv.reader(io.StringIO(content), delimiter=separator) if row)
        width = len(next(rows, []))
        for number, row in enumerate(rows, 2):
            if len(row) != width:
                raise ValueError(f"row {number} has {len(row)} values, and the header names {width} columns")
    finally:
        csv.field_size_limit(limit)


def check_column(columns: Collection[str], column: str, key: str, file: object) -> str:
    """The column's name; ValueError with the option ``key`` that names it unless it is one of ``columns``."""
    if column not in columns:
        close = difflib.get_close_matches(column, columns, n=1)
        hint = f"did you mean {close[0]}? Its" if close else "its"
        raise ValueError(f"{key}={column} is no column of {file}; {hint} columns are {', '.join(columns)}.")
    return column
