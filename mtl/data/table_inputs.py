"""Which columns of a table are inputs, and what the training rows say of each; without torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtl.data.columns import KINDS
from mtl.data.input_columns import INPUT_KINDS, InputColumn, LeftOut, infer_input, learn
from mtl.data.table_text import check_column
from mtl.data.tables import Files


def learn_inputs(
    table: Any,
    inputs: Sequence[str] | None,
    exclude: Sequence[str],
    kinds: Mapping[str, str],
    used: Collection[str],
    apart: Collection[Any],
    train: NDArray[np.bool_],
    file: Files,
    reads_text: bool,
) -> tuple[list[InputColumn], dict[str, str]]:
    """The inputs: ``inputs``, or every column that is neither ``used`` as a target nor set ``apart``.

    Also the columns that are none, and why. ``kinds`` are those of inputs that are not what they seem to be.
    """
    for key, named in (("inputs", inputs or ()), ("exclude", exclude)):
        for column in named:
            if check_column(table.columns, column, key, file) in used:
                raise ValueError(f"{key}={column} is a target; name it in data.targets or in data.{key}, not both.")
    found, left_out = [], {}
    for column in table.columns if inputs is None else inputs:
        if inputs is None and column in {*exclude, *used, *apart}:
            continue
        try:
            kind = kinds.get(column) or infer_input(table, column, file, reads_text)
            if kind not in INPUT_KINDS:
                raise ValueError(f"kinds.{column}={kind} must be one of {', '.join(INPUT_KINDS)}: it is an input.")
            found.append(learn(column, table[column], kind, train, file))
        except LeftOut as reason:
            if inputs is not None:
                raise ValueError(f"{file}: inputs={column} cannot be an input: {reason}.") from reason
            left_out[column] = str(reason)
    for name in kinds:
        if name not in {*(column.name for column in found), *left_out}:
            raise ValueError(
                f"kinds.{name} names neither a target nor an input; a target is {', '.join(KINDS)}, and an input "
                f"{', '.join(INPUT_KINDS)}."
            )
    if not found:
        raise ValueError(f"{file} has no column that can be an input, beside the targets.")
    return found, left_out
