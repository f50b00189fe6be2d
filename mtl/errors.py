"""The error of a user's mistake, and how an error is quoted in one line."""

from __future__ import annotations


class ConfigError(ValueError):
    """A mistake in the configuration: one sentence with the key, its value, and what is accepted."""


def first_line(error: BaseException | str) -> str:
    """The first line of an error's message; the name of its type if the message is empty."""
    text = str(error).strip() or type(error).__name__
    return text.split("\n")[0]
