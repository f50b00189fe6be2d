"""What the tests of the tracker share: a small run, and the environment of nobody."""

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
    """No W&B settings, key or cache of the person at this machine."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        patch.delenv(name)
    patch.setenv("WANDB_CACHE_DIR", str(folder / "cache"))
    patch.setenv("WANDB_CONFIG_DIR", str(folder / "config"))
    patch.setenv("WANDB_ERROR_REPORTING", "false")
    patch.setenv("NETRC", str(folder / "netrc"))


def tear_down() -> None:
    """End wandb's helper: it writes the last of the files, and keeps the environment it was started in."""
    if "wandb" in sys.modules:
        import wandb

        wandb.teardown()


def settings(mode: str | None = None, **others: Any) -> SimpleNamespace:
    """What conf/tracker holds."""
    given = {"mode": mode, "project": "mtl", "entity": None, "group": None, "run_name": "a-run", "tags": []}
    return SimpleNamespace(**given | others)


def record(
    folder: Path,
    mode: str | None = None,
    config: dict[str, Any] | None = None,
    after_two: Callable[[], Any] = int,
) -> list[dict[str, Any]]:
    """A run of four rows, with something done after the second; what its metrics.jsonl says."""
    folder.mkdir(exist_ok=True)
    with Tracker(folder, settings(mode), config or CONFIG) as tracker:
        for step in range(1, 5):
            tracker.log("train", step, step / 2, {"loss/left": 1 / step})
            if step == 2:
                after_two()
    return rows_of(folder)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl, read as strictly as JSON is."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=not_json) for line in lines]


def not_json(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def steps(rows: list[dict[str, Any]]) -> list[int]:
    return [row["step"] for row in rows]
