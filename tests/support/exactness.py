"""Bitwise equality of nested tensors and plain values, and of whole runs."""

import json

import torch

from mtl.runs import checkpoint

TIMES = ("time/step", "time/data", "samples_per_second")  # the only metrics that may differ


def left_by(folder):
    """All checkpoints and rows of a run, without its times."""
    checkpoints = {}
    for path in sorted((folder / "checkpoints").glob("*.pt")):
        content = checkpoint.load(path)
        for key in ("seconds", "config", "wandb_id"):
            del content[key]
        checkpoints[path.name] = content
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return checkpoints, [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def differing(a, b, path=""):
    """The paths of keys at which two nested values differ."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | ((a != a) & (b != b))).all())
        return [] if same else [path]
    if isinstance(a, dict) and isinstance(b, dict):
        inside = [where for key in a.keys() & b.keys() for where in differing(a[key], b[key], f"{path}/{key}")]
        return sorted(inside + [f"{path}/{key}" for key in a.keys() ^ b.keys()])
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return [where for i in range(len(a)) for where in differing(a[i], b[i], f"{path}/{i}")]
    return [] if type(a) is type(b) and (a == b or (a != a and b != b)) else [path]


def same(a, b):
    return differing(a, b) == []


def assert_same(a, b):
    where = differing(a, b)
    assert not where, f"not the same: {where}"
