"""Shared by the tests of the tracker: a small run, and isolation from the user's environment."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mtl.runs.tracker import Tracker

NAN, INF = float("nan"), float("inf")
CONFIG = {"seed": 0, "optimizer": {"lr": 0.001}, "names": ["left", "right"], "resume": None}


def isolate(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Hide the user's W&B settings, key and cache."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        patch.delenv(name)
    patch.setenv("WANDB_CACHE_DIR", str(folder / "cache"))
    patch.setenv("WANDB_CONFIG_DIR", str(folder / "config"))
    patch.setenv("WANDB_ERROR_REPORTING", "false")
    patch.setenv("NETRC", str(folder / "netrc"))


def tear_down() -> None:
    """End W&B's service: it writes the last files, and it would keep the environment that it was started in."""
    if "wandb" in sys.modules:
        import wandb

        wandb.teardown()


def settings(mode: str | None = None, **others: Any) -> SimpleNamespace:
    """Settings as in conf/tracker."""
    given = {"mode": mode, "project": "mtl", "entity": None, "group": None, "run_name": "a-run", "tags": []}
    return SimpleNamespace(**given | others)


def record(
    folder: Path,
    mode: str | None = None,
    config: dict[str, Any] | None = None,
    after_two: Callable[[], Any] = int,
) -> list[dict[str, Any]]:
    """Record a run of four rows, calling ``after_two`` after the second; returns the rows of metrics.jsonl."""
    folder.mkdir(exist_ok=True)
    with Tracker(folder, settings(mode), config or CONFIG) as tracker:
        for step in range(1, 5):
            tracker.log("train", step, step / 2, {"loss/left": 1 / step})
            if step == 2:
                after_two()
    return rows_of(folder)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, parsed as strict JSON."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=not_json) for line in lines]


def not_json(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def steps(rows: list[dict[str, Any]]) -> list[int]:
    return [row["step"] for row in rows]
