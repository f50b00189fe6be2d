"""The errors of a user's mistake."""

from __future__ import annotations

import difflib
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# Where installed code lies; every other file is the user's own.
INSTALLED = (Path(__file__).parent, *(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")))


class ConfigError(ValueError):
    """A mistake in the configuration: one sentence with the key, its value, and what is accepted."""


class RunError(RuntimeError):
    """What stops a run in one sentence, the first line, that says what to do; a traceback is of no help."""


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


def reason_of(error: BaseException) -> str:
    """The error's first line; where the user's own code raised it, also its class and the file and line there.

    So an AttributeError inside an own module is not taken for one of the configuration.
    """
    named = f"{type(error).__name__}: {first_line(error)}"
    where = own_line(error)
    if where:
        return f"{named} ({where})"
    return named if isinstance(error, KeyError) else first_line(error)  # a KeyError's message is the bare key


def own_line(error: BaseException) -> str:
    """The innermost place in the user's own code that an error passed through, as ``mine.py, line 7``; else empty."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        if file.is_file() and not any(file.is_relative_to(place) for place in INSTALLED):
            here = Path.cwd()
            return f"{file.relative_to(here) if file.is_relative_to(here) else file}, line {frame.lineno}"
    return ""


def closest_path(path: Path) -> str:
    """``; did you mean …``, the closest name beside a path that is not there; else empty."""
    beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, beside, n=1)
    return f"; did you mean {path.parent / close[0]}" if close else ""


def suggestion(key: str, accepted: Iterable[str]) -> str:
    """The closest name, or all that are accepted: how an error about an unknown key ends."""
    close = difflib.get_close_matches(key, list(accepted), n=1)
    return f"did you mean {close[0]}" if close else f"accepted: {', '.join(accepted)}"
