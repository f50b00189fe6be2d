"""The errors of a user's mistake."""

from __future__ import annotations


class ConfigError(ValueError):
    """A mistake in the configuration: one sentence with the key, its value, and what is accepted."""


def first_line(error: BaseException | str) -> str:
    """The error's message, cut to its first line; its class name if it has none."""
    text = str(error).strip() or type(error).__name__
    return text.split("\n")[0]
