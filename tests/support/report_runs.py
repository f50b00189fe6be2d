"""Run folders as mtl-train writes them, with given numbers."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml

RULE = {"_target_": "mtl.strategies.Balanced", "space": "features"}
STRATEGIES = {
    "naive": {"_target_": "mtl.strategies.Naive"},
    "detached": {"_target_": "mtl.strategies.Detached"},
    "mgda": RULE | {"rule": {"_target_": "mtl.rules.MGDA"}},
    "cagrad": RULE | {"rule": {"_target_": "mtl.rules.CAGrad", "c": 0.5}},
    "surgery": {"_target_": "elsewhere.Surgery"},
}


def write_run(
    folder: Path,
    strategy: str = "naive",
    seed: int = 0,
    test: dict[str, float] | None = None,
    best: float = 1.0,
    tasks: list[str] | None = None,
    status: str = "finished",
    error: str | None = None,
    weights: dict[str, float] | None = None,
    rows: int = 4,
    step_time: float = 0.1,
    start: float | None = None,
    recorded: dict[str, Any] | None = None,
    **config: Any,
) -> Path:
    """Write one run folder; without ``test`` the run is unfinished. ``config`` is merged into config.yaml.

    ``start``: the second at which a run of a minute began; None: not recorded. ``recorded``: more of summary.json.
    """
    folder.mkdir(parents=True)
    weighting: dict[str, Any] = {"_target_": "mtl.weightings.Equal"}
    if weights is not None:
        weighting = {"_target_": "mtl.weightings.Static", "weights": weights}
    whole = {
        "data": {"_target_": "mtl.data.digits.Digits", "offset": 1},
        "heads": {"left": {"out_features": 10}, "right": {"out_features": 10}},
        "tasks": tasks,
        "weighting": weighting,
        "strategy": STRATEGIES[strategy],
        "conflict": {"every": 10, "tolerance": 0.05},
        "optimizer": {"lr": 0.1, "groups": {"backbone": {"lr": config.get("optimizer", {}).get("lr", 0.1)}}},
        "trainer": {"mode": "min", "monitor": "loss/total"},
        "tracker": {"project": "mtl", "run_name": str(folder)},
        "seed": seed,
    }
    for key, value in config.items():
        whole[key] = {**whole.get(key, {}), **value} if isinstance(value, dict) else value
    overrides = [f"strategy={strategy}", f"seed={seed}", "data.offset=1"]
    (folder / "config.yaml").write_text(f"# overrides: {json.dumps(overrides)}\n{yaml.safe_dump(whole)}")
    told = {"status": status, "host": "here"} | ({"error": error} if error else {})
    if start is not None:
        told["started"], told["time"] = (datetime.fromtimestamp(start + s, timezone.utc).isoformat() for s in (0, 60))
    (folder / "status.json").write_text(json.dumps(told))
    own = tasks or ["left", "right"]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in _rows(own, rows, step_time, seed)))
    if test is not None:
        summary = {"steps": rows * 10, "test": test, "best": {"monitor": best}, "memory/peak": 1000}
        summary["higher_is_better"] = {name: True for name in test if name.endswith("accuracy")}
        (folder / "summary.json").write_text(json.dumps(summary | (recorded or {})))
    return folder


def _rows(tasks: list[str], count: int, step_time: float, seed: int) -> list[dict[str, Any]]:
    rows = []
    for i in range(1, count + 1):
        where = {"step": 10 * i, "epoch": 0.1 * i}
        losses = {f"loss/{task}": 2.0 / i + 0.1 * seed for task in tasks} | {"loss/total": 4.0 / i}
        train = losses | {f"weight/{task}": 1.0 for task in tasks} | {"time/step": step_time}
        train |= {f"conflict/norm/{task}": 0.3 + 0.1 * i for task in tasks}
        if len(tasks) > 1:
            train |= {"conflict/cos/left~right": 0.1 - 0.05 * i, "conflict/cos_mean": 0.1 - 0.05 * i}
            train |= {"conflict/fraction": float(i > 2)}
        rows.append(where | {"split": "train"} | train)
        rows.append(where | {"split": "val"} | losses | {f"{task}/accuracy": 1 - 0.5 / i for task in tasks})
    return rows


def accuracies(left: float | None = None, right: float | None = None) -> dict[str, float]:
    """Metrics of the test split."""
    found = {"left": left, "right": right}
    known = {task: value for task, value in found.items() if value is not None}
    losses = {f"loss/{task}": 1 - value for task, value in known.items()}
    return losses | {"loss/total": sum(losses.values())} | {f"{task}/accuracy": value for task, value in known.items()}


def write_sharing(
    folder: Path, seed: int, metrics: dict[str, tuple[float, float]], architecture: dict[str, Any]
) -> Path:
    """A run of an ``architecture`` that logs ``metrics`` of it: the first value in three rows, then the second."""
    write_run(folder, "detached", seed, accuracies(0.5, 0.5), rows=8, architecture=architecture)
    lines = []
    for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()):
        own = {f"architecture/{name}": pair[row["step"] > 30] for name, pair in metrics.items()}
        lines.append(json.dumps(row | (own if row["split"] == "train" else {})) + "\n")
    (folder / "metrics.jsonl").write_text("".join(lines))
    return folder


def write_study(root: Path, seeds: int = 3) -> Path:
    """Two baselines, equal and two static weightings, two rules, in turn; at two rates, the higher is better."""
    jobs = 0
    for lr in (0.1, 0.2):
        for seed in range(seeds):
            shift, gain = 0.01 * seed, 0.02 * (lr == 0.2)
            settings: list[tuple[dict[str, Any], float | None, float | None]] = [
                ({"tasks": ["left"], "strategy": "detached"}, 0.80, None),
                ({"tasks": ["right"], "strategy": "detached"}, None, 0.60),
                ({}, 0.70, 0.70),
                ({"weights": {"left": 1.5, "right": 0.5}}, 0.76, 0.62),
                ({"weights": {"left": 0.5, "right": 1.5}}, 0.62, 0.74),
                ({"strategy": "mgda"}, 0.72, 0.71),
                ({"strategy": "cagrad"}, 0.68, 0.69),
            ]
            for extra, left, right in settings:
                test = accuracies(*(None if v is None else v + shift + gain for v in (left, right)))
                best = 1 - sum(v for v in (left, right) if v) - gain
                write_run(
                    root / str(jobs), seed=seed, test=test, best=best, start=100 * jobs, optimizer={"lr": lr}, **extra
                )
                jobs += 1
    return root
