"""The arguments of a class and a module's texts, read from the source: importing torch would take seconds."""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from pathlib import Path


def can_be_found(target: str) -> bool:
    """Whether the package of a dotted name is installed, or on Python's path."""
    try:
        return importlib.util.find_spec(target.partition(".")[0]) is not None
    except (ImportError, ValueError):
        return False


def arguments_of(target: str) -> list[str] | None:
    """The arguments that the class or function ``target`` takes; None where its source alone does not tell.

    It does not for code in C, for a constructor that is inherited or takes any keyword, and for names that are made
    when a module is imported.
    """
    module, _, name = target.rpartition(".")
    return _arguments(module, name, depth=5)


def text_of(module: str, name: str) -> str | None:
    """The text that a constant of a module holds; None where the source alone does not tell."""
    file = _file_of(module)
    for node in _statements(file) if file else ():
        if isinstance(node, ast.Assign) and name in (getattr(target, "id", None) for target in node.targets):
            value = node.value.value if isinstance(node.value, ast.Constant) else None
            return value if isinstance(value, str) else None
    return None


def _arguments(module: str, name: str, depth: int) -> list[str] | None:
    file = _file_of(module)
    if file is None or not depth:
        return None
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in reversed(_statements(file)):
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return _names(node, bound=False) if not node.decorator_list else None
        if isinstance(node, ast.ClassDef) and node.name == name:
            own = (part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__")
            constructor = next(own, None)
            return None if constructor is None else _names(constructor, bound=True)
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _arguments(_source_of(node, package), alias.name, depth - 1)
    return None


def _names(function: ast.FunctionDef, bound: bool) -> list[str] | None:
    given = function.args
    if given.kwarg is not None or given.vararg is not None:
        return None
    names = [argument.arg for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return names[1:] if bound else names


def _source_of(node: ast.ImportFrom, package: str) -> str:
    """The module that a ``from … import`` names."""
    if not node.level:
        return node.module or ""
    parents = package.split(".")
    base = parents[: len(parents) - node.level + 1]
    return ".".join([*base, node.module] if node.module else base)


def _file_of(module: str) -> Path | None:
    """The source file of a module, without importing the packages above it."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top) if can_be_found(top) else None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    path = Path(spec.origin).parent.joinpath(*rest) if rest else Path(spec.origin).parent
    for file in (path / "__init__.py", path.with_suffix(".py")) if rest else (Path(spec.origin),):
        if file.is_file():
            return file
    return None


@cache
def _statements(file: Path) -> list[ast.stmt]:
    try:
        return ast.parse(file.read_text()).body
    except (OSError, SyntaxError, UnicodeDecodeError):
        return []
