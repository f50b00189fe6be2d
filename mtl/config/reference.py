"""What every key and every option is, read from where it is declared, for ``mtl-train --help`` and the documentation.

A key's meaning is its comment in mtl/config/schema.py, an option's the comment that its YAML begins with. Neither torch
nor Hydra is imported.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml

from mtl.config import schema

TYPES = {
    "int": "whole number", "float": "number", "str": "text", "bool": "true, false", "list[str]": "list of texts",
}  # fmt: skip


@dataclass(frozen=True)
class Key:
    """A key of the configuration: its full name, as ``trainer.max_steps``, and what a user should know of it."""

    name: str
    type: str
    default: str
    meaning: str
    changeable: bool  # by a resumed run


def keys(conf: Path) -> Iterator[Key]:
    """The top-level keys that are no section, then those of every section, in the order of the schema.

    ``conf`` is the folder of the configurations; a default is what ``mtl-train`` alone takes.
    """
    chosen = {"trainer.": yaml.safe_load((conf / "trainer" / "default.yaml").read_text())}
    sections = {"": schema.Config} | {
        f"{key.name}.": key.metadata["section"] for key in fields(schema.Config) if "section" in key.metadata
    }
    for prefix, section in sections.items():
        meanings, defaults = _comments(section.__name__), chosen.get(prefix, {})
        for key in fields(section):
            if _type(key):
                default = _default(defaults[key.name] if key.name in defaults else _declared(key))
                yield Key(prefix + key.name, _type(key), default, meanings[key.name], _is_changeable(prefix, key))


def groups() -> dict[str, str]:
    """The configuration's groups, and what each one is: the keys of the schema that hold more than one value."""
    meanings = _comments("Config")
    return {key.name: meanings[key.name] for key in fields(schema.Config) if not _type(key)} | schema.PACKAGES


def meaning_of(file: Path) -> str:
    """The comment that a YAML file begins with, as one line without the commands in it; empty where there is none."""
    lines = [line for line in file.read_text().splitlines() if not line.startswith("# @package")]
    comment = takewhile(lambda line: line.startswith("#"), lines)
    return " ".join(line[2:].strip() for line in comment if not re.match(r"#( mtl-| python |   )", line))


def help_text(conf: Path) -> str:
    """All keys with type, default and meaning, for a terminal."""
    blocks = []
    for key in keys(conf):
        words = textwrap.fill(key.meaning, 110, initial_indent="    ", subsequent_indent="    ")
        blocks.append(f"{key.name} ({key.type}; default {key.default})\n{words}")
    return "\n".join(blocks)


def _type(key: Field[Any]) -> str:
    """The values that a key takes, in words; empty for a group or a section."""
    choices = key.metadata.get("choices")
    if choices:
        return ", ".join("null" if choice is None else choice for choice in choices)
    name, _, rest = str(key.type).partition(" | ")
    return TYPES.get(name, "") + (" or null" if rest == "None" else "")


def _declared(key: Field[Any]) -> Any:
    return key.default_factory() if key.default_factory is not MISSING else key.default


def _default(value: Any) -> str:
    if value == schema.MISSING:
        return "the data's name"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _is_changeable(prefix: str, key: Field[Any]) -> bool:
    """Whether a resumed run may change it: by itself, or with its whole section."""
    whole = [section.name for section in fields(schema.Config) if section.metadata.get("changeable")]
    return bool(key.metadata.get("changeable")) or prefix[:-1] in whole


def _comments(owner: str) -> dict[str, str]:
    """The comment of every field of a class of the schema: behind it, or in the lines above it."""
    source = Path(schema.__file__).read_text()
    lines = source.splitlines()
    (body,) = (node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == owner)
    meanings, above = {}, 0
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            end = node.end_lineno or node.lineno
            behind = lines[end - 1][node.end_col_offset or 0 :].strip()
            comment = [behind] if behind else [line.strip() for line in lines[above : node.lineno - 1] if "#" in line]
            meanings[node.target.id] = " ".join(line.removeprefix("#").strip() for line in comment)
        above = node.end_lineno or node.lineno
    return meanings
