"""Rank and number of processes as the environment gives them; no torch."""

from __future__ import annotations

import os


def rank() -> int:
    """Which of the processes that torchrun has started this is; 0 for one that is alone."""
    return int(os.environ.get("RANK", 0)) if has_several_ranks() else 0


def has_several_ranks() -> bool:
    """Whether torchrun has started this process and others."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1
