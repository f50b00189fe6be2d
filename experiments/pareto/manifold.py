"""Models with members at the study's preferences: python experiments/pareto/manifold.py outputs/pareto manifold.csv."""

import sys
from pathlib import Path

import pandas as pd

from mtl.evaluate import evaluate_checkpoint
from mtl.runs.files import read_yaml

PREFERENCES = [(0.2, 1.8), (0.6, 1.4), (1.0, 1.0), (1.4, 0.6), (1.8, 0.2)]
METRICS = ["loss/left", "loss/right", "loss/total", "left/accuracy", "right/accuracy"]


def main(runs, table):
    """Write a row for each run with members and each preference, with the columns of results.csv."""
    rows = []
    for file in sorted(Path(runs).rglob("config.yaml")):
        config = read_yaml(file)
        strategy = config.get("strategy") or {}
        if not strategy.get("_target_", "").endswith("ParetoManifold") or not (file.parent / "checkpoints").is_dir():
            continue
        for left, right in PREFERENCES:
            found = evaluate_checkpoint(file.parent, "test", overrides=[f"preference=[{left},{right}]"])
            label = f"manifold-{strategy['preferences']} preference.left={left} preference.right={right}"
            rows.append({"label": label, "seed": config["seed"], **{f"test/{name}": found[name] for name in METRICS}})
    pd.DataFrame(rows).sort_values(["label", "seed"]).to_csv(table, index=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
