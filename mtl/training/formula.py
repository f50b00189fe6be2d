"""A formula of metrics, as ``2*left/accuracy - depth/abs_err``: plain arithmetic, and no code of the user's runs."""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from mtl.errors import suggestion

BINARY: Mapping[type, Callable[[float, float], float]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip
ACCEPTED = "accepted are metrics, numbers, + - * / and brackets"


class Formula:
    """A formula of metrics. ``directions``: by metric ``min``, ``max`` or None, where its direction is not known.

    ``mode``: the formula's own direction, where every metric in it pulls the same way; else None. ValueError for a name
    that is no metric, for anything but arithmetic, and for a formula that divides by zero whatever the metrics are.
    """

    def __init__(self, text: str, directions: Mapping[str, str | None]) -> None:
        self.text, self._names = text, list[str]()
        # Names have a slash of their own, so they are taken out before the rest is read, the longest first.
        known = "|".join(re.escape(name) for name in sorted(directions, key=len, reverse=True))
        rest = re.sub(rf"(?<![\w/.])(?:val/)?({known})(?!\w|/[^\W\d])", self._placeholder, text)
        if (unknown := re.search(r"(?<![\w.])(?!_\d+_)[^\W\d][\w/]*", rest)) is not None:
            raise ValueError(f"{unknown[0]} is not a metric of this run; {suggestion(unknown[0], directions)}")
        try:
            self._tree: Any = ast.parse(rest.strip(), mode="eval").body
        except SyntaxError as error:
            raise ValueError(f"it is no formula; {ACCEPTED}") from error
        modes = set(self._modes(self._tree, directions, 1))
        self.mode = modes.pop() if len(modes) == 1 else None
        try:  # at a point where no difference of metrics is zero
            self._evaluate(self._tree, {name: math.sqrt(2 + i) for i, name in enumerate(self._names)})
        except ZeroDivisionError as error:
            raise ValueError("it divides by zero") from error

    def value(self, metrics: Mapping[str, float]) -> float:
        """The formula's value; NaN where a metric is absent, or where it divides by zero."""
        try:
            return self._evaluate(self._tree, metrics)
        except (ZeroDivisionError, KeyError, OverflowError):
            return math.nan

    def _placeholder(self, match: re.Match[str]) -> str:
        self._names.append(match[1])
        return f"_{len(self._names) - 1}_"

    def _evaluate(self, node: Any, metrics: Mapping[str, float]) -> float:
        if isinstance(node, ast.BinOp) and type(node.op) in BINARY:
            return BINARY[type(node.op)](self._evaluate(node.left, metrics), self._evaluate(node.right, metrics))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
            value = self._evaluate(node.operand, metrics)
            return -value if isinstance(node.op, ast.USub) else value
        if isinstance(node, ast.Name):
            return metrics[self._name(node)]
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            return float(node.value)
        raise ValueError(f"it is no formula; {ACCEPTED}")

    def _name(self, node: ast.Name) -> str:
        return self._names[int(node.id.strip("_"))]

    def _modes(self, node: Any, directions: Mapping[str, str | None], sign: int) -> list[str | None]:
        """The direction in which each metric pulls; None where its sign is not that of a constant."""
        if isinstance(node, ast.Name):
            own = directions[self._name(node)]
            return [own if own is None or sign > 0 else "min" if own == "max" else "max"]
        if isinstance(node, ast.UnaryOp):
            return self._modes(node.operand, directions, -sign if isinstance(node.op, ast.USub) else sign)
        if not isinstance(node, ast.BinOp):
            return []
        if isinstance(node.op, ast.Add | ast.Sub):
            other = -sign if isinstance(node.op, ast.Sub) else sign
            return [*self._modes(node.left, directions, sign), *self._modes(node.right, directions, other)]
        left, right = self._constant(node.left), self._constant(node.right)
        if right is not None:
            return self._modes(node.left, directions, sign if right > 0 else -sign)
        if left is not None and isinstance(node.op, ast.Mult):
            return self._modes(node.right, directions, sign if left > 0 else -sign)
        return [None]

    def _constant(self, node: Any) -> float | None:
        if any(isinstance(inner, ast.Name) for inner in ast.walk(node)):
            return None
        return self._evaluate(node, {})
