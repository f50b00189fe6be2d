"""The errors of a user's mistake."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class ConfigError(ValueError):
    """A mistake in the configuration: one sentence with the key, its value, and what is accepted."""


def require(name: str, value: Any, accepted: str, holds: bool) -> None:
    """Raise ``ValueError``, one sentence with name, value and what is accepted, unless ``holds``.

    NaN fails every comparison, so it is refused too.
    """
    if not holds:
        raise ValueError(f"{name}={value} must be {accepted}.")


def require_positive(**sizes: int) -> None:
    """Raise ``ValueError`` for the first of the named whole numbers that is below 1."""
    for name, size in sizes.items():
        if isinstance(size, int | float):
            require(name, size, "1 or more", size >= 1)
        else:
            require(name, size, "a whole number of 1 or more", False)


def first_line(error: BaseException | str) -> str:
    """The error's message, cut to its first line; its class name if it has none."""
    text = str(error).strip() or type(error).__name__
    return text.split("\n")[0]


def suggestion(key: str, accepted: Iterable[str]) -> str:
    """The closest name, or all that are accepted: how an error about an unknown key ends."""
    close = difflib.get_close_matches(key, list(accepted), n=1)
    return f"did you mean {close[0]}" if close else f"accepted: {', '.join(accepted)}"
