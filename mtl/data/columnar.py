"""Tables that are read a column or a block of rows at a time, so that they need not fit into memory; without torch."""

from __future__ import annotations

import codecs
import importlib.util
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from mtl.data.folder import errors_named_by
from mtl.data.table_text import REMEDY, find_separator
from mtl.data.tables import (
    check_different,
    is_index,
    is_index_name,
    is_parquet,
    spellings_of,
    with_decimal_points,
)

log = logging.getLogger(__name__)

BLOCK = 65_536  # rows
BEGINNING = 1 << 20  # bytes of a text that tell what separates its columns
TRUTH = {"True": True, "TRUE": True, "true": True, "False": False, "FALSE": False, "false": False}


class Columnar:
    """The columns of one Parquet file or of several below each other, as a pandas DataFrame has them.

    ``table[name]`` reads one column, and :meth:`blocks` the rows in order. ``files`` maps each table to the Parquet
    file of it, in which all columns are text with ``separator`` if it was made of a text by :func:`as_parquet`. Spaces
    and ``missing`` values are none. ValueError for a column that is not in all files, is of two kinds, or holds lists.
    """

    def __init__(self, files: Mapping[Path, Path], missing: Sequence[Any] = (), separator: str | None = None) -> None:
        from pyarrow import parquet, types

        self._separator, self._types, self._last = separator, dict[str, Any](), ("", pd.Series())
        marks = spellings_of(missing)
        texts = ["", *(["nan", "NaN"] if separator else []), *(mark for mark in marks if isinstance(mark, str))]
        self._gaps, self._numbers = texts, [mark for mark in marks if not isinstance(mark, str)]
        self._files = []
        for source, file in files.items():
            with errors_named_by(source), parquet.ParquetFile(file, memory_map=True) as own:
                schema, rows = own.schema_arrow, own.metadata.num_rows
                check_different(schema.names)
                if not rows:
                    raise ValueError("it has no rows")
                if nested := [field.name for field in schema if types.is_nested(field.type)]:
                    raise ValueError(f"{nested[0]} has {schema.field(nested[0]).type}, and no numbers or texts")
            self._files.append((source, file, schema, rows))
        self._check_alike()
        names = [name for name in self._files[0][2].names if not name.startswith("__index_level_")]
        self.columns = [name for name in names if not (is_index_name(name) and is_index(self[name]))]
        self.sizes = {source: rows for source, _, _, rows in self._files}

    def __len__(self) -> int:
        return sum(rows for _, _, _, rows in self._files)

    def __getitem__(self, name: Any) -> Any:
        if not isinstance(name, str):
            return pd.DataFrame({column: self[column] for column in name})
        if self._last[0] != name:
            self._last = (name, self._read(name))
        return self._last[1].copy(deep=False)

    def blocks(self, columns: Sequence[str]) -> Iterator[tuple[int, pd.DataFrame]]:
        """The place of the first row of each block of rows, and some of its columns."""
        from pyarrow import parquet

        first = 0
        for _, file, _, _ in self._files:
            with parquet.ParquetFile(file, memory_map=True) as own:
                for batch in own.iter_batches(BLOCK, columns=list(columns)):
                    yield first, pd.DataFrame({name: self._series(name, batch.column(name)) for name in columns})
                    first += batch.num_rows

    def _check_alike(self) -> None:
        (first, _, schema, _), *others = self._files
        for other, _, own, _ in others:
            for name in {*schema.names} ^ {*own.names}:
                raise ValueError(f"{other if name in schema.names else first} has no column {name}.")
            for name in schema.names if self._separator is None else ():
                kinds = ["text" if _is_text(part.field(name).type) else "numbers" for part in (schema, own)]
                if kinds[0] != kinds[1]:
                    raise ValueError(f"{name} has {kinds[0]} in {first} and {kinds[1]} in {other}.")

    def _check_alike_texts(self, name: str, parts: Sequence[Any]) -> None:
        """ValueError for texts that are numbers in one file and none in another."""
        cleaned = [(source, self._cleaned(part)) for (source, *_), part in zip(self._files, parts, strict=True)]
        known = [(source, _type_of(own) is None) for source, own in cleaned if own.null_count < len(own)]
        for source, is_text in known if self._types[name] is None else ():
            if is_text != known[0][1]:
                kinds = ["text" if own else "numbers" for own in (known[0][1], is_text)]
                raise ValueError(f"{name} has {kinds[0]} in {known[0][0]} and {kinds[1]} in {source}.")

    def _read(self, name: str) -> pd.Series:
        import pyarrow as pa
        from pyarrow import parquet

        parts = [parquet.read_table(file, columns=[name], memory_map=True).column(0) for _, file, _, _ in self._files]
        same = parts[0].type if len({part.type for part in parts}) == 1 else None
        if same is None:
            same = pa.string() if _is_text(parts[0].type) else pa.float64()
        whole = pa.chunked_array([chunk.cast(same) for part in parts for chunk in part.chunks], same)
        if self._separator is not None:
            self._types[name] = _type_of(self._cleaned(whole))
            self._check_alike_texts(name, parts)
        return self._series(name, whole)

    def _cleaned(self, column: Any) -> Any:
        import pyarrow as pa
        from pyarrow import compute

        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        gaps = pa.array(self._gaps, column.type)
        missing = compute.is_in(compute.utf8_trim_whitespace(column), value_set=gaps)
        return compute.if_else(missing, pa.scalar(None, column.type), column)

    def _series(self, name: str, column: Any) -> pd.Series:
        """A column or a part of it as pandas has it."""
        import pyarrow as pa
        from pyarrow import compute

        if pa.types.is_decimal(column.type):
            column = column.cast(pa.float64())
        if not _is_text(column.type):
            own = column.to_pandas(date_as_object=False).rename(name)
            return own.mask(own.isin(self._numbers)) if self._numbers else own
        column = self._cleaned(column)
        kind = self._types.get(name)
        if kind is not None and kind != pa.bool_():
            return compute.utf8_trim_whitespace(column).cast(kind).to_pandas().rename(name)
        own = pd.Series(column.to_pandas(strings_to_categorical=True).astype(object), name=name)
        if kind is not None:
            return own.map(TRUTH)
        return own if self._separator is None else with_decimal_points(own, self._separator)


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return bool(types.is_string(kind) or types.is_large_string(kind))


def _type_of(texts: Any) -> Any:
    """The type that all texts of a column can be read as, None for none: whole numbers, numbers, truth values."""
    import pyarrow as pa
    from pyarrow import compute

    if texts.null_count == len(texts):
        return pa.float64()
    bare = compute.utf8_trim_whitespace(texts)
    for kind in (pa.int64(), pa.float64()):
        try:
            bare.cast(kind)
        except pa.ArrowInvalid:
            continue
        return kind
    truth = compute.is_in(texts.drop_null(), value_set=pa.array([*TRUTH], texts.type))
    return pa.bool_() if compute.all(truth).as_py() else None


def as_parquet(source: Path, file: Path) -> str:
    """Write a text table as a Parquet file of texts, a block at a time; return what separates its columns."""
    from pyarrow import csv, parquet, string

    with source.open("rb") as opened:
        beginning = opened.read(BEGINNING)
    is_utf16 = beginning.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    encoding = "utf-16" if is_utf16 else "utf-8"
    text = beginning[: len(beginning) // 2 * 2].decode(encoding, "ignore").removeprefix("\ufeff")
    separator = find_separator(text[: text.rfind("\n") + 1] or text)
    with errors_named_by(source), _encoding_named():
        options = csv.ReadOptions(encoding=encoding, block_size=16 << 20)
        parse = csv.ParseOptions(delimiter=separator, newlines_in_values=True)
        head = csv.open_csv(source, options, parse).schema.names
        check_different(head)
        texts = csv.ConvertOptions(column_types=dict.fromkeys(head, string()), strings_can_be_null=False)
        log.info("%s is written as %s", source, file)
        with csv.open_csv(source, options, parse, texts) as batches, parquet.ParquetWriter(file, batches.schema) as out:
            for batch in batches:
                out.write_batch(batch)
    return separator


@contextmanager
def _encoding_named() -> Iterator[None]:
    """A sentence instead of Arrow's own for another encoding."""
    try:
        yield
    except Exception as error:
        if re.search("utf-?8", str(error), re.IGNORECASE):
            raise ValueError(f"it is not UTF-8; {REMEDY}") from error
        raise


def open_columns(files: Sequence[Path], missing: Sequence[Any], folder: Path | None) -> Columnar | None:
    """The files as columns, where they are Parquet or there is a ``folder`` to write it to; None for other texts."""
    if folder is not None or any(map(is_parquet, files)):
        _check_pyarrow(files)
    if all(map(is_parquet, files)):
        return Columnar({file: file for file in files}, missing)
    if folder is None:
        return None
    if any(map(is_parquet, files)):
        raise ValueError(f"{', '.join(map(str, files))} must be all Parquet or all text.")
    made = {file: folder / f"{i}.parquet" for i, file in enumerate(files)}
    separators = {as_parquet(file, own) for file, own in made.items()}
    if len(separators) > 1:
        raise ValueError(f"{', '.join(map(str, files))} have columns that are separated by different signs.")
    return Columnar(made, missing, separators.pop())


def _check_pyarrow(files: Sequence[Path]) -> None:
    if importlib.util.find_spec("pyarrow") is None:
        raise ValueError(
            f"{files[0]}: Parquet and data.cache need pyarrow, which is missing: pip install 'mtl-torch[parquet]'."
        )


def remove_texts(folder: Path) -> None:
    """Remove the Parquet files that :func:`open_columns` has made in a folder."""
    for file in folder.glob("*.parquet"):
        file.unlink()
